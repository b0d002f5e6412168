-- A new birth on purpose: everything stored for the tenant is void.
--
-- KEYS[1], ARGV[1], ARGV[2]  see common.lua
-- Reply:   1
-- Atomic: doubts stay, all versions go at once.
redis.call('HSET', key, 'birth', token)
for _, tag in ipairs(names('v:')) do
    redis.call('HSET', key, 'v:' .. tag, token)
end
renew_epoch()
return 1
