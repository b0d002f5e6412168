-- Returns the numbers of a tenant by the hour, in one command.
--
-- KEYS[1]  the key of the tenant's numbers; those of an hour have keys that begin with it
-- ARGV[1]  seconds of an hour
-- ARGV[2]  the most hours
--
-- Reply: for each hour that has numbers, the oldest first: the hour, and fields and values by turns.
local present = math.floor(redis.call('TIME')[1] / ARGV[1])
local found = {}
for hour = present - ARGV[2] + 1, present do
    local slot = string.format('%s:%d', KEYS[1], hour)
    if redis.call('TYPE', slot)['ok'] == 'hash' then
        found[#found + 1] = hour
        found[#found + 1] = redis.call('HGETALL', slot)
    end
end
return found
