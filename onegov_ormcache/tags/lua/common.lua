-- Comes before every other script: gives the tenant a birth if it has none. helpers.lua has what
-- most scripts have in common beside that.
--
-- KEYS[1]  the key of the tenant's versions for one identity of its database, a hash:
--            run_id      that of the server on which the rest was written
--            key         KEYS[1] itself, so that a copy of another key is not taken for it
--            birth       token; the version of every tag without one of its own; with a
--                        '+' at its end after a quarantine
--            epoch       token; renewed by every script that changes anything
--            quarantine  exists from a birth until the writers that were in progress
--                        then have ended; their transaction ids, separated by commas,
--                        '' if nobody knows them yet, 'lease' if there are no ids
--            forgotten   when versions were last forgotten (seconds, the server's clock)
--            damage      exists if this birth replaced a state that nobody could read: what was
--                        wrong with it, for the log of the processes
--            v:TAG       the tag's version: a token; with a '+' at its end if it has not
--                        changed since the quarantine
--            d:WRITER    a doubt, as JSON: tags, key, at (seconds, the server's clock)
--          and three fields that only a large hash has, see helpers.lua:
--            index       the epoch and the number of fields for which the next two hold
--            writers     the writers in doubt, sealed JSON
--            properties  the tags of properties that have a version, sealed JSON
--          Its log of changes, see helpers.lua, is the key with ':changes' at its end.
-- ARGV[1]  a new random token
-- ARGV[2]  '1' if a birth must begin a quarantine
--
-- If the key has another run_id than the server, everything in it is dropped, and the
-- tenant gets a new birth: the server was restarted from a dump, or is a promoted
-- replica, so the key may be older than what was acknowledged. `run_id` is that of the server
-- which executes the rest: the code before this gets it, see scripts.py.
--
-- So does a key that can't be read. Its doubts are dropped as well, because a part that can be
-- read does not tell what else there was. That is safe for the same reason as after a loss: the
-- quarantine lasts until every writer that was in progress at the birth has ended, and its end is
-- a new birth. So no value from before a commit whose doubt was dropped can be valid after it.
local key, token = KEYS[1], ARGV[1]
local log = key .. ':changes'
local born = false
-- what is known of the names in the hash, see helpers.lua
local lists = {}

-- The most fields and bytes that a tenant's state, and the most bytes that a doubt may have.
-- They bound the time for which a forged key can stop the server.
local MAX_FIELDS, MAX_STATE, MAX_DOUBT = 100000, 16777216, 4194304

-- A hash with no more fields is small: to send or to look at all of it costs less than to keep an
-- index and a log. So only large ones have them.
local SMALL = 32

-- Puts a digest before a text, so that bytes which were damaged are not taken for it.
local function sealed(text)
    return redis.sha1hex(text) .. text
end

-- Returns the text behind its digest; nil if it is not as it was.
local function unsealed(bytes)
    local text = type(bytes) == 'string' and string.sub(bytes, 41)
    return text and redis.sha1hex(text) == string.sub(bytes, 1, 40) and text or nil
end

local function bear(damage)
    redis.call('UNLINK', key)
    redis.pcall('UNLINK', log)
    lists = {}
    redis.call('HSET', key, 'run_id', run_id, 'key', key, 'birth', token, 'epoch', token)
    if ARGV[2] == '1' then
        redis.call('HSET', key, 'quarantine', '')
    end
    if damage then
        redis.call('HSET', key, 'damage', damage)
    end
    born = true
end

local head = redis.pcall('HMGET', key, 'run_id', 'key', 'birth', 'epoch', 'index')
if head.err then
    bear('it is no hash')
elseif head[1] ~= run_id then
    bear()
elseif head[2] ~= key then
    bear('it is a copy of another key')
elseif (head[3] or '') == '' or (head[4] or '') == '' then
    bear('it has no birth or no epoch')
end
