-- Settles a doubt that was left: gives its tags new versions and ends it.
--
-- KEYS[1], ARGV[1], ARGV[2]  see common.lua
-- ARGV[3]  the writer's id
-- ARGV[4]  seconds that the doubt must be old at least, or '': of any age
-- Reply:   1 if it was settled, 0 if there is no such doubt or it is too young.
-- Atomic for the same reason as publish.lua. It is harmless if the writer publishes, or
-- somebody else settles the doubt, before or after it.
local left = redis.call('HGET', key, 'd:' .. ARGV[3])
if not left then
    return 0
end
local doubt = cjson.decode(left)
if ARGV[4] ~= '' and now() - doubt.at < tonumber(ARGV[4]) then
    return 0
end
for _, tag in ipairs(doubt.tags) do
    redis.call('HSET', key, 'v:' .. tag, token)
end
redis.call('HDEL', key, 'd:' .. ARGV[3])
renew_epoch()
return 1
