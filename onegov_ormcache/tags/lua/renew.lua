-- Gives the tenant a new birth on purpose: everything stored for it becomes void.
--
-- KEYS[1], ARGV[1], ARGV[2]  see common.lua
-- Reply:   1
-- Atomic: all versions are replaced at once. Doubts stay, because their writers are still
-- about to commit.
redis.call('HSET', key, 'birth', token)
for _, tag in ipairs(names('v:')) do
    redis.call('HSET', key, 'v:' .. tag, token)
end
renew_epoch()
return 1
