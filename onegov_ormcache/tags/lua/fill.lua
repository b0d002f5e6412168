-- Stores values, each if the tags that it depends on have not changed since its creator began; and
-- gives the locks of their computations back in any case.
--
-- KEYS[1], ARGV[1], ARGV[2]  see common.lua
-- KEYS[2] and all after it   two for each value: its key, and that of its lock; the value's own again
--                            if it has no lock
-- ARGV[3] and all after it   four for each value:
--            JSON: the stamp, tag to version
--            the value
--            milliseconds until it goes, or '': never
--            the caller's token of the lock
-- Reply:   for each value 1 if it was stored; 0 if a version differs, a tag is in doubt, a
--          property's tag is not registered, or the tenant is new or in quarantine.
-- Atomic: no version or doubt can change between the check and the storing. This is the
-- lease of Nishtala et al., NSDI 2013, with the stamp in place of the lease.

-- first the doubts: if one can't be read, the tenant is new afterwards
local doubted = doubted_beside('')
local is_closed = born or redis.call('HEXISTS', key, 'quarantine') == 1

local function may_store(stamp)
    if is_closed or broken(stamp, '', false, doubted) then
        return false
    end
    for tag, _ in pairs(stamp) do
        -- writers whose code does not have the property know only of registered tags
        if string.sub(tag, 1, 9) == 'property:'
            and redis.call('HEXISTS', key, 'v:' .. tag) == 0
        then
            return false
        end
    end
    return true
end

local stored = {}
for number = 1, (#KEYS - 1) / 2 do
    local name, lock = KEYS[2 * number], KEYS[2 * number + 1]
    local stamp, value, lifetime, holder = unpack(ARGV, 4 * number - 1, 4 * number + 2)
    if lock ~= name then
        release(lock, holder)
    end
    stored[number] = 0
    if may_store(cjson.decode(stamp)) then
        stored[number] = 1
        if lifetime == '' then
            redis.call('SET', name, value)
        else
            redis.call('SET', name, value, 'PX', lifetime)
        end
    end
end
return stored
