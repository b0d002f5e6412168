-- Looks for a value, and locks its computation if there is none that is valid now.
--
-- KEYS[1], ARGV[1], ARGV[2]  see common.lua
-- KEYS[2]  the value's key
-- KEYS[3]  the lock's key
-- ARGV[3]  the caller's token of the lock
-- ARGV[4]  milliseconds until the lock expires
-- ARGV[5]  JSON, object: tags that have their place elsewhere, each with the version that the
--          caller knows
-- Reply:   {0, value} if it is valid now. {1} or {1, value} if the caller has the lock, {2} or
--          {2, value} if somebody else has; the value is not valid now, but may be for the
--          caller's snapshot.
-- Atomic: nobody can store the value between the look and the lock, so whoever gets the lock need
-- not look again.
local value = redis.call('GET', KEYS[2])

-- Returns whether the stamp, the first part of the value, has the present versions.
local function is_valid()
    local read, _, stamp = pcall(cmsgpack.unpack_one, value, 1)
    if not read or type(stamp) ~= 'table' then
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
    return {0, value}
end
local is_mine = redis.call('SET', KEYS[3], ARGV[3], 'NX', 'PX', ARGV[4])
return {is_mine and 1 or 2, value or nil}
