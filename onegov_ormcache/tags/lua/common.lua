-- Put before every other script: the tenant's state, born if it is unknown.
--
-- KEYS[1]  the tenant's key, a hash:
--            run_id      of the server that the rest was written on
--            birth       token; the version of every tag without one of its own
--            epoch       token; renewed by every script that changes anything
--            quarantine  there from a birth until the writers in progress then have
--                        ended: '' or their transaction ids, separated by commas
--            v:TAG       the tag's version
--            d:WRITER    a doubt, as JSON: tags, xid, at (seconds, the server's clock)
-- ARGV[1]  a fresh random token
-- ARGV[2]  '1' if a birth must be quarantined
--
-- The run_id is the server's own word, in the same atomic step as what follows: a
-- server that was restarted from a dump, or a promoted replica, has another one,
-- and what it holds may be older than what was acknowledged.
local key, token = KEYS[1], ARGV[1]
local run_id = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
local born = redis.call('HGET', key, 'run_id') ~= run_id

if born then
    redis.call('DEL', key)
    redis.call('HSET', key, 'run_id', run_id, 'birth', token, 'epoch', token)
    if ARGV[2] == '1' then
        redis.call('HSET', key, 'quarantine', '')
    end
end

local function renew_epoch()
    redis.call('HSET', key, 'epoch', token)
end

-- Seconds by the server's clock, with their fraction: a lease may be short.
local function now()
    local time = redis.call('TIME')
    return tonumber(time[1]) + tonumber(time[2]) / 1000000
end

local function version(tag)
    return redis.call('HGET', key, 'v:' .. tag) or redis.call('HGET', key, 'birth')
end

-- The fields that begin with this, without it.
local function names(prefix)
    local found = {}
    for _, field in ipairs(redis.call('HKEYS', key)) do
        if string.sub(field, 1, #prefix) == prefix then
            found[#found + 1] = string.sub(field, #prefix + 1)
        end
    end
    return found
end

-- The first tag of the stamp of which the version differs or a writer other than
-- `writer` is in doubt; nil if all hold.
local function broken(stamp, writer)
    if next(stamp) == nil then
        return nil
    end
    for tag, stamped in pairs(stamp) do
        if version(tag) ~= stamped then
            return tag
        end
    end
    for _, other in ipairs(names('d:')) do
        if other ~= writer then
            local doubt = cjson.decode(redis.call('HGET', key, 'd:' .. other))
            for _, tag in ipairs(doubt.tags) do
                if stamp[tag] then
                    return tag
                end
            end
        end
    end
    return nil
end
