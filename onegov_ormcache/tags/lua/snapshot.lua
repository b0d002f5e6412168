-- Returns the tenant's state, unless the caller has it already.
--
-- KEYS[1], ARGV[1], ARGV[2]  see common.lua
-- ARGV[3]  the epoch that the caller knows, or ''
-- Reply:   nil if that is still the epoch; else all fields and values of the hash,
--          alternating.
-- Atomic: versions and doubts are those of one moment.
if redis.call('HGET', key, 'epoch') == ARGV[3] then
    return false
end
return redis.call('HGETALL', key)
