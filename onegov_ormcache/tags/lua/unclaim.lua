-- Gives the lock of a value's computation back.
--
-- KEYS[1], ARGV[1], ARGV[2]  see common.lua
-- KEYS[2]  the lock's key
-- ARGV[3]  the caller's token of the lock
-- Reply:   1
-- Atomic: the lock may have expired, and be somebody else's by now.
release(KEYS[2], ARGV[3])
return 1
