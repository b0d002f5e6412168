-- Lets the lock of a value's computation last longer.
--
-- KEYS[1], ARGV[1], ARGV[2]  see common.lua
-- KEYS[2]  the lock's key
-- ARGV[3]  the caller's token of the lock
-- ARGV[4]  milliseconds until the lock expires
-- Reply:   1, or 0 if the caller does not have the lock any more.
-- Atomic: the lock may have expired, and be somebody else's by now.
if redis.pcall('GET', KEYS[2]) ~= ARGV[3] then
    return 0
end
redis.call('PEXPIRE', KEYS[2], ARGV[4])
return 1
