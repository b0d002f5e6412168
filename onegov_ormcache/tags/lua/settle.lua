-- A doubt that was left: its tags get new versions, and it ends.
--
-- KEYS[1], ARGV[1], ARGV[2]  see common.lua
-- ARGV[3]  the writer's id
-- ARGV[4]  seconds that the doubt must be old, or ''
-- Reply:   1 if it was settled, 0 if there is no such doubt or it is too young.
-- Atomic, and harmless beside the writer itself or another who settles.
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
