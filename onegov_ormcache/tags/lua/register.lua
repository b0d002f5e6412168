-- Makes the tags of properties known to all writers, also to those whose code does not
-- have the properties: such a writer evicts them by any change.
--
-- KEYS[1], ARGV[1], ARGV[2]  see common.lua
-- ARGV[3]  JSON: list of tags
-- Reply:   1
-- Atomic: who is about to commit could not know of them; from now on its doubt, and
-- what it publishes, has them too.
local added = {}
for _, tag in ipairs(cjson.decode(ARGV[3])) do
    if redis.call('HSETNX', key, 'v:' .. tag, token) == 1 then
        added[#added + 1] = tag
    end
end
if #added > 0 then
    for _, writer in ipairs(names('d:')) do
        local doubt = cjson.decode(redis.call('HGET', key, 'd:' .. writer))
        for _, tag in ipairs(added) do
            doubt.tags[#doubt.tags + 1] = tag
        end
        redis.call('HSET', key, 'd:' .. writer, cjson.encode(doubt))
    end
    renew_epoch()
end
return 1
