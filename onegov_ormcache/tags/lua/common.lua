-- Comes before every other script: gives the tenant a birth if it has none, and defines
-- what the scripts have in common.
--
-- KEYS[1]  the key of the tenant's versions for one identity of its database, a hash:
--            run_id      that of the server on which the rest was written
--            birth       token; the version of every tag without one of its own; with a
--                        '+' at its end after a quarantine
--            epoch       token; renewed by every script that changes anything
--            quarantine  exists from a birth until the writers that were in progress
--                        then have ended; their transaction ids, separated by commas,
--                        '' if nobody knows them yet, 'lease' if there are no ids
--            forgotten   when versions were last forgotten (seconds, the server's clock)
--            v:TAG       the tag's version: a token; with a '+' at its end if it has not
--                        changed since the quarantine
--            d:WRITER    a doubt, as JSON: tags, key, at (seconds, the server's clock)
-- ARGV[1]  a new random token
-- ARGV[2]  '1' if a birth must begin a quarantine
--
-- If the key has another run_id than the server, everything in it is dropped, and the
-- tenant gets a new birth: the server was restarted from a dump, or is a promoted
-- replica, so the key may be older than what was acknowledged. `run_id` is that of the server
-- which executes the rest: the code before this gets it, see scripts.py.
local key, token = KEYS[1], ARGV[1]
local born = redis.call('HGET', key, 'run_id') ~= run_id

if born then
    redis.call('DEL', key)
    redis.call('HSET', key, 'run_id', run_id, 'birth', token, 'epoch', token)
    if ARGV[2] == '1' then
        redis.call('HSET', key, 'quarantine', '')
    end
end

-- What the end of a quarantine adds to the birth and to each version. So all of them are new,
-- and still tell which tags have not changed since. It is no character of a token.
local ENDED = '+'

local function renew_epoch()
    redis.call('HSET', key, 'epoch', token)
end

-- Returns the server's time in seconds, with their fraction, because a lease may be short.
local function now()
    local time = redis.call('TIME')
    return tonumber(time[1]) + tonumber(time[2]) / 1000000
end

local function version(tag)
    return redis.call('HGET', key, 'v:' .. tag) or redis.call('HGET', key, 'birth')
end

-- Returns the fields that begin with the prefix, without the prefix.
local function names(prefix)
    local found = {}
    for _, field in ipairs(redis.call('HKEYS', key)) do
        if string.sub(field, 1, #prefix) == prefix then
            found[#found + 1] = string.sub(field, #prefix + 1)
        end
    end
    return found
end

-- Returns a tag that has another version than in the stamp, or that is in the doubt of
-- another writer than `writer`; nil if the stamp holds. If `outlasting`, a version of a
-- quarantine also holds after its end.
local function broken(stamp, writer, outlasting)
    if next(stamp) == nil then
        return nil
    end
    for tag, stamped in pairs(stamp) do
        local present = version(tag)
        if present ~= stamped and not (outlasting and present == stamped .. ENDED) then
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

-- Gives a lock back, if it is still that of the caller with this token.
local function release(lock, holder)
    if redis.call('GET', lock) == holder then
        redis.call('DEL', lock)
    end
end
