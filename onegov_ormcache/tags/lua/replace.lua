-- Gives the tenant a new birth, because a process could not read its state.
--
-- KEYS[1], ARGV[1], ARGV[2]  see common.lua
-- ARGV[3]  the epoch in that state, as it was
-- ARGV[4]  what was wrong with it
-- Reply:   1 if it was done, 0 if the tenant has another epoch by now.
-- Atomic: of several processes that find the same damage, one replaces it, and none replaces what
-- came after it.
if born or head[4] ~= ARGV[3] then
    return 0
end
bear(ARGV[4])
return 1
