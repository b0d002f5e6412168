-- Adds what a process has counted to the numbers of a tenant.
--
-- KEYS[1]  the key of the numbers, a hash. Those of an hour, and the latest commits, have keys
--          that begin with it, so that they are on the same node of a cluster.
-- ARGV[1]  numbers, texts and commits, as MessagePack: {counts, counts of the hour, texts,
--          commits}; the first three as lists of fields and values, by turns
-- ARGV[2]  seconds after which the numbers are dropped, if nobody adds any
-- ARGV[3]  seconds of an hour
-- ARGV[4]  seconds for which the numbers of an hour are kept
-- ARGV[5]  the most fields of a hash
-- ARGV[6]  the most commits that are kept
-- ARGV[7]  the field that counts what had no room
-- ARGV[8]  the begin of the fields of tags, which get no room in the last half
--
-- The hour is that of this server's clock, the same for all processes. A key that another program
-- has made is replaced.
local counts, hourly, texts, commits = unpack(cmsgpack.unpack(ARGV[1]))
local most = tonumber(ARGV[5])

local function typed(key, kind)
    local found = redis.call('TYPE', key)['ok']
    if found ~= kind and found ~= 'none' then
        redis.call('DEL', key)
    end
    return key
end

local function has_room(key, field)
    local limit = most
    if string.sub(field, 1, #ARGV[8]) == ARGV[8] then
        limit = math.floor(most / 2)
    end
    return redis.call('HEXISTS', key, field) == 1 or redis.call('HLEN', key) < limit
end

local function add(key, numbers)
    for at = 1, #numbers, 2 do
        local field, number = numbers[at], numbers[at + 1]
        if field ~= ARGV[7] and not has_room(key, field) then
            field, number = ARGV[7], '1'
        end
        local reply = redis.pcall('HINCRBYFLOAT', key, field, number)
        if type(reply) == 'table' and reply['err'] then
            redis.call('HSET', key, field, number)
        end
    end
end

local key = typed(KEYS[1], 'hash')
add(key, counts)
for at = 1, #texts, 2 do
    if has_room(key, texts[at]) then
        redis.call('HSET', key, texts[at], texts[at + 1])
    end
end
redis.call('EXPIRE', key, ARGV[2])
if #hourly > 0 then
    local hour = math.floor(redis.call('TIME')[1] / ARGV[3])
    local slot = typed(string.format('%s:%d', key, hour), 'hash')
    add(slot, hourly)
    redis.call('EXPIRE', slot, ARGV[4])
end
if #commits > 0 then
    local list = typed(key .. ':commits', 'list')
    redis.call('LPUSH', list, unpack(commits))
    redis.call('LTRIM', list, 0, ARGV[6] - 1)
    redis.call('EXPIRE', list, ARGV[2])
end
return 1
