-- Returns the tenant's list of identities.
--
-- KEYS[1], ARGV[1], ARGV[2]  see common.lua
-- KEYS[2]  the list, see identify.lua
-- ARGV[3]  the most fields that the list may have
-- Reply:   all fields and values, alternating; empty if it is no list, or too long for one.
-- Atomic: the length is that of the list which is returned.
local length = redis.pcall('HLEN', KEYS[2])
if type(length) ~= 'number' or length > tonumber(ARGV[3]) then
    return {}
end
return redis.call('HGETALL', KEYS[2])
