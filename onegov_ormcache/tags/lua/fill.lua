-- Stores a value, if the tags that it depends on have not changed since its creator began; and
-- gives the lock of its computation back in any case.
--
-- KEYS[1], ARGV[1], ARGV[2]  see common.lua
-- KEYS[2]  the value's key
-- KEYS[3]  the lock's key; may be missing
-- ARGV[3]  JSON: the stamp, tag to version
-- ARGV[4]  the value
-- ARGV[5]  milliseconds until it expires, or '': never
-- ARGV[6]  the caller's token of the lock
-- Reply:   1 if it was stored; 0 if a version differs, a tag is in doubt, a
--          property's tag is not registered, or the tenant is new or in quarantine.
-- Atomic: no version or doubt can change between the check and the storing. This is the
-- lease of Nishtala et al., NSDI 2013, with the stamp in place of the lease.
local stamp = cjson.decode(ARGV[3])

local function may_store()
    if born or redis.call('HEXISTS', key, 'quarantine') == 1 or broken(stamp, '') then
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

if KEYS[3] then
    release(KEYS[3], ARGV[6])
end
if not may_store() then
    return 0
end
if ARGV[5] == '' then
    redis.call('SET', KEYS[2], ARGV[4])
else
    redis.call('SET', KEYS[2], ARGV[4], 'PX', ARGV[5])
end
return 1
