-- Sets the transactions that a quarantine waits for; or ends it, which is a new birth.
--
-- KEYS[1], ARGV[1], ARGV[2]  see common.lua
-- ARGV[3]  the birth that began the quarantine
-- ARGV[4]  transaction ids, separated by commas; '' ends the quarantine
-- Reply:   1 if it was done, 0 if there is no such quarantine any more.
-- Atomic: all versions are replaced as the quarantine ends. A version from before may be
-- in the stamp of a value that was read while a writer was about to commit whose doubt
-- the store has lost. Each new version is made of the one before, for the sake of writers
-- that have computed values in the quarantine, see doubt.lua.
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
    redis.call('HSET', key, 'birth', ARGV[3] .. ENDED)
    for _, tag in ipairs(names('v:')) do
        redis.call('HSET', key, 'v:' .. tag, version(tag) .. ENDED)
    end
end
renew_epoch()
return 1
