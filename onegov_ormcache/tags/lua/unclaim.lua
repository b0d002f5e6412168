-- Gives the locks of values' computations back.
--
-- KEYS[1], ARGV[1], ARGV[2]  see common.lua
-- KEYS[2] and all after it   the locks' keys
-- ARGV[3] and all after it   the caller's token of each lock
-- Reply:   1
-- Atomic: a lock may have expired, and be somebody else's by now.
for number = 2, #KEYS do
    release(KEYS[number], ARGV[number + 1])
end
return 1
