-- After COMMIT has returned: new versions for the tags and for those that were put in
-- doubt, and the end of the doubt.
--
-- KEYS[1], ARGV[1], ARGV[2]  see common.lua
-- ARGV[3]  the writer's id
-- ARGV[4]  JSON: list of tags
-- Reply:   1
-- Atomic: between the end of the doubt and the new versions a reader would take
-- what was stored before the commit for valid.
for _, tag in ipairs(cjson.decode(ARGV[4])) do
    redis.call('HSET', key, 'v:' .. tag, token)
end
local doubt = redis.call('HGET', key, 'd:' .. ARGV[3])
if doubt then
    for _, tag in ipairs(cjson.decode(doubt).tags) do
        redis.call('HSET', key, 'v:' .. tag, token)
    end
end
redis.call('HDEL', key, 'd:' .. ARGV[3])
renew_epoch()
return 1
