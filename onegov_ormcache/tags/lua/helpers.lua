-- Comes between common.lua and the scripts that need it: functions for versions, doubts and locks.
-- The others do without, because each call of a script makes these functions anew.

-- What the end of a quarantine adds to the birth and to each version. So all of them are new,
-- and still tell which tags have not changed since. It is no character of a token.
local ENDED = '+'

-- Returns whether a text is like the tokens that processes make, see new_token().
local function is_token(text)
    return type(text) == 'string' and #text <= 64 and string.find(text, '^[%w_-]+$') ~= nil
end

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
    if redis.call('HLEN', key) > MAX_FIELDS then
        bear('it has too many fields')
    end
    local found = {}
    for _, field in ipairs(redis.call('HKEYS', key)) do
        if string.sub(field, 1, #prefix) == prefix then
            found[#found + 1] = string.sub(field, #prefix + 1)
        end
    end
    return found
end

-- Returns whether a text was decoded to a doubt.
local function is_doubt(doubt)
    if type(doubt) ~= 'table' or type(doubt.tags) ~= 'table' or type(doubt.key) ~= 'string'
        or type(doubt.at) ~= 'number'
    then
        return false
    end
    for at, tag in pairs(doubt.tags) do
        if type(at) ~= 'number' or type(tag) ~= 'string' then
            return false
        end
    end
    return true
end

-- Returns the doubt of a writer; nil if it has none, and if that can't be read: then the tenant
-- has got a new birth.
local function doubt_of(writer)
    local text = redis.call('HGET', key, 'd:' .. writer)
    if not text then
        return nil
    end
    local read, doubt = false, nil
    if #text <= MAX_DOUBT then
        read, doubt = pcall(cjson.decode, text)
    end
    if read and is_doubt(doubt) then
        return doubt
    end
    bear('a doubt in it can not be read')
    return nil
end

-- Returns a tag that has another version than in the stamp, or that is in the doubt of
-- another writer than `writer`; nil if the stamp holds. If `outlasting`, a version of a
-- quarantine also holds after its end.
local function broken(stamp, writer, outlasting)
    if next(stamp) == nil then
        return nil
    end
    -- first the doubts: if one can't be read, there are other versions afterwards
    local doubted = {}
    for _, other in ipairs(names('d:')) do
        local doubt = other ~= writer and doubt_of(other)
        for _, tag in ipairs(doubt and doubt.tags or {}) do
            doubted[tag] = true
        end
    end
    for tag, stamped in pairs(stamp) do
        local present = version(tag)
        if present ~= stamped and not (outlasting and present == stamped .. ENDED) then
            return tag
        end
        if doubted[tag] then
            return tag
        end
    end
    return nil
end

-- Gives a lock back, if it is still that of the caller with this token.
local function release(lock, holder)
    -- a key of another kind is no lock of anybody
    if redis.pcall('GET', lock) == holder then
        redis.call('DEL', lock)
    end
end
