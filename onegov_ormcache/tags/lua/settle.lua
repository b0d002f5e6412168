-- Settles a doubt that was left: gives its tags new versions and ends it.
--
-- KEYS[1], ARGV[1], ARGV[2]  see common.lua
-- ARGV[3]  the writer's id
-- ARGV[4]  seconds that the doubt must be old at least, or '': of any age
-- Reply:   1 if it was settled, 0 if there is no such doubt or it is too young.
-- Atomic for the same reason as publish.lua. It is harmless if the writer publishes, or
-- somebody else settles the doubt, before or after it.
local doubt = doubt_of(ARGV[3])
if not doubt then
    return 0
end
if ARGV[4] ~= '' then
    -- the server's clock was set back: the doubt grows old from now on
    if not (doubt.at <= now()) then
        doubt.at = now()
        redis.call('HSET', key, 'd:' .. ARGV[3], cjson.encode(doubt))
    end
    if now() - doubt.at < tonumber(ARGV[4]) then
        return 0
    end
end
for _, tag in ipairs(doubt.tags) do
    renew_version(tag)
end
drop_doubt(ARGV[3])
renew_epoch_by_changes()
return 1
