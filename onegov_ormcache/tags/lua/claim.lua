-- Looks for a value, and locks its computation if there is none that is valid now.
--
-- KEYS[1], ARGV[1], ARGV[2]  see common.lua
-- KEYS[2]  the value's key
-- KEYS[3]  the lock's key
-- ARGV[3]  the caller's token of the lock
-- ARGV[4]  milliseconds until the lock expires
-- ARGV[5]  JSON, object: tags that have their place elsewhere, each with the version that the
--          caller knows
-- ARGV[6]  what a value of this key begins with. Nine bytes follow that are not looked at, then
--          the length of the stamp (four bytes, big-endian), then the stamp as MessagePack
-- ARGV[7]  the most bytes that a value may have
-- ARGV[8]  the most bytes that a stamp may have
-- Reply:   {0, value, left} if it is valid now. {1, value, left} if the caller has the lock,
--          {2, value, left} if somebody else has; the value is not valid now, but may be for the
--          caller's snapshot, or is nil. left: milliseconds until it expires, -1 if it does not, -3
--          if the key is no string or has too many bytes.
-- Atomic: nobody can store the value between the look and the lock, so whoever gets the lock need
-- not look again.

-- The most milliseconds for which a lock is set. A key that lasts longer is no lock of ours, and
-- nobody would ever give it back.
local MAX_LOCK = 60000

local value, left = redis.pcall('GETRANGE', KEYS[2], 0, ARGV[7]), -1
if type(value) ~= 'string' or #value > tonumber(ARGV[7]) then
    value, left = false, -3
elseif value == '' then
    value = false
else
    left = redis.call('PTTL', KEYS[2])
end

-- Returns the stamp; nil if there is none that can be read.
local function stamp_of()
    local at = #ARGV[6] + 9
    if string.sub(value, 1, #ARGV[6]) ~= ARGV[6] or #value < at + 4 then
        return nil
    end
    local length = struct.unpack('>I4', value, at + 1)
    if length > tonumber(ARGV[8]) then
        return nil
    end
    local read, _, stamp = pcall(cmsgpack.unpack_one, string.sub(value, at + 5, at + 4 + length))
    if not read or type(stamp) ~= 'table' then
        return nil
    end
    for tag, stamped in pairs(stamp) do
        if type(tag) ~= 'string' or type(stamped) ~= 'string' then
            return nil
        end
    end
    return stamp
end

-- Returns whether the stamp has the present versions.
local function is_valid()
    local stamp = stamp_of()
    if not stamp then
        return false
    end
    local elsewhere = cjson.decode(ARGV[5])
    local own = {}
    for tag, stamped in pairs(stamp) do
        if elsewhere[tag] == nil then
            own[tag] = stamped
        elseif elsewhere[tag] ~= stamped then
            return false
        end
    end
    return not broken(own, '')
end

if value and is_valid() then
    return {0, value, left}
end
local is_mine = redis.call('SET', KEYS[3], ARGV[3], 'NX', 'PX', ARGV[4])
if not is_mine then
    local lasts = redis.call('PTTL', KEYS[3])
    if lasts < 0 or lasts > MAX_LOCK then
        is_mine = redis.call('SET', KEYS[3], ARGV[3], 'PX', ARGV[4])
    end
end
return {is_mine and 1 or 2, value, left}
