-- Gives the tenant a new birth without any versions of tags, because too many of these are
-- tags that nobody uses any more.
--
-- KEYS[1], ARGV[1], ARGV[2]  see common.lua
-- ARGV[3]  seconds within which it is not done a second time
-- Reply:   1 if it was done, else 0.
-- Atomic: with its own version gone, a tag has the version of the birth; only a new birth makes
-- sure that no stamp has it. Doubts stay, because their writers are still about to commit; so
-- does a quarantine.
local last = tonumber(redis.call('HGET', key, 'forgotten') or '')
-- a moment in the future is from before the server's clock was set back
if last and last <= now() and now() - last < tonumber(ARGV[3]) then
    return 0
end
for _, tag in ipairs(names('v:')) do
    redis.call('HDEL', key, 'v:' .. tag)
end
redis.call('HSET', key, 'birth', token, 'forgotten', now())
-- the hash is small now, and has no index
redis.call('HDEL', key, 'index', 'writers', 'properties')
renew_epoch()
return 1
