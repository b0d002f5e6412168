-- Looks for values, and locks the computation of each that is not there, or not valid now.
--
-- KEYS[1], ARGV[1], ARGV[2]  see common.lua
-- ARGV[3], ARGV[4]           see values.lua
-- KEYS[2] and all after it   two for each value: its key, and that of its lock
-- ARGV[5]  the most bytes that a stamp may have
-- ARGV[6]  milliseconds until the locks expire
-- ARGV[7]  JSON, object: tags that have their place elsewhere, each with the version that the
--          caller knows
-- ARGV[8] and all after it   the caller's token of each lock
-- Reply:   three for each value: state, value, left. State 0: it is valid. 1: the caller has the
--          lock, 2: somebody else has; the value is not valid now, but may be for the caller's
--          snapshot, or is nil. left: milliseconds until it expires, or a number below 0, see
--          values.lua.
-- Atomic: nobody can store a value between the look and the lock, so whoever gets the lock need
-- not look again.

-- The most milliseconds for which a lock is set. A key that lasts longer is no lock of ours, and
-- nobody would ever give it back.
local MAX_LOCK = 60000

local elsewhere = cjson.decode(ARGV[7])
local doubted

-- Returns the stamp; nil if there is none that can be read.
local function stamp_of(name, value)
    local head = MAGIC .. struct.pack('>I4', #name) .. name
    local at = #head + 9
    if string.sub(value, 1, #head) ~= head or #value < at + 4 then
        return nil
    end
    local length = struct.unpack('>I4', value, at + 1)
    if length > tonumber(ARGV[5]) then
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
local function is_valid(stamp)
    local own = {}
    for tag, stamped in pairs(stamp) do
        if elsewhere[tag] == nil then
            own[tag] = stamped
        elseif elsewhere[tag] ~= stamped then
            return false
        end
    end
    doubted = doubted or doubted_beside('')
    return not broken(own, '', false, doubted)
end

-- Returns whether the caller has the lock.
local function has_lock(lock, token)
    if redis.call('SET', lock, token, 'NX', 'PX', ARGV[6]) then
        return true
    end
    local lasts = redis.call('PTTL', lock)
    if lasts < 0 or lasts > MAX_LOCK then
        redis.call('SET', lock, token, 'PX', ARGV[6])
        return true
    end
    -- the reply to the caller's first attempt may have been lost
    return redis.pcall('GET', lock) == token
end

local reply = {}
for number = 1, (#KEYS - 1) / 2 do
    local name, lock = KEYS[2 * number], KEYS[2 * number + 1]
    local value, left = redis.pcall('GETRANGE', name, 0, MOST), -1
    if value == '' then
        value = false
    else
        value, left = sent(name, value)
    end
    -- nobody can use a value of which Redis does not know when it expires
    local stamp = value and left ~= -2 and stamp_of(name, value)
    local state = 0
    if not stamp or not is_valid(stamp) then
        state = has_lock(lock, ARGV[number + 7]) and 1 or 2
    end
    local last = #reply
    reply[last + 1], reply[last + 2], reply[last + 3] = state, value, left
end
return reply
