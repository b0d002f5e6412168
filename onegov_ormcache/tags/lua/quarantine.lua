-- Which transactions a quarantine waits for; or its end, which is a new birth.
--
-- KEYS[1], ARGV[1], ARGV[2]  see common.lua
-- ARGV[3]  the birth that the caller speaks of
-- ARGV[4]  transaction ids, separated by commas; '' ends the quarantine
-- Reply:   1 if it was done, 0 if there is no such quarantine any more.
-- Atomic: every version that was given in the quarantine goes with it, because a
-- value read beside a writer whose doubt was lost may carry it.
if redis.call('HGET', key, 'birth') ~= ARGV[3] then
    return 0
end
if redis.call('HEXISTS', key, 'quarantine') == 0 then
    return 0
end
if ARGV[4] ~= '' then
    redis.call('HSET', key, 'quarantine', ARGV[4])
else
    redis.call('HDEL', key, 'quarantine')
    redis.call('HSET', key, 'birth', token)
    for _, tag in ipairs(names('v:')) do
        redis.call('HSET', key, 'v:' .. tag, token)
    end
end
renew_epoch()
return 1
