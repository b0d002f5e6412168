-- Comes between common.lua and the scripts that need it: functions for versions, doubts and locks.
-- The others do without, because each call of a script makes these functions anew.

-- What the end of a quarantine adds to the birth and to each version. So all of them are new,
-- and still tell which tags have not changed since. It is no character of a token.
local ENDED = '+'

-- Returns whether a text is like the tokens that processes make, see new_token().
local function is_token(text)
    return type(text) == 'string' and #text <= 64 and string.find(text, '^[%w_-]+$') ~= nil
end

-- Begins a new epoch. Whoever knows an earlier one is sent all.
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

-- Returns the fields that begin with the prefix, without the prefix. It looks at all fields, so no
-- script that runs for a snapshot, a commit or a value may call it; see members().
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

-- The index: two lists of names, so that nobody need look at all fields of a large hash. `index`
-- tells for which epoch and number of fields they hold. A program that knows no index (an older
-- release) renews the epoch, or adds or removes a field; then the lists are made anew, of all
-- fields.

-- Returns the list that a field belongs to; nil if to none.
local function list_of(field)
    if string.sub(field, 1, 2) == 'd:' then
        return 'writers'
    elseif string.sub(field, 1, 11) == 'v:property:' then
        return 'properties'
    end
    return nil
end

-- Whether the hash is large, and has an index that holds; nil until somebody asks. Both are as
-- they were before this script has changed anything.
local is_large, is_indexed

-- The fields that this script has changed, each with whether it is there.
local changed = {}

-- Finds out whether the hash is large and has an index. Must come before the first change.
local function look_at_index()
    if is_large ~= nil then
        return
    end
    local fields = redis.call('HLEN', key)
    if fields > MAX_FIELDS then
        bear('it has too many fields')
    end
    is_large = not born and fields > SMALL
    is_indexed = is_large and head[5] == head[4] .. ' ' .. fields
end

local function write_list(list)
    local found = {}
    for name in pairs(lists[list]) do
        found[#found + 1] = name
    end
    redis.call('HSET', key, list, sealed(cjson.encode(found)))
end

-- Writes for what the lists hold, after all else was written.
local function write_index(epoch)
    redis.call('HSET', key, 'index', '')
    redis.call('HSET', key, 'index', epoch .. ' ' .. redis.call('HLEN', key))
end

-- Makes the lists of all fields.
local function scan()
    lists = {writers = {}, properties = {}}
    for _, field in ipairs(redis.call('HKEYS', key)) do
        local list = list_of(field)
        if list then
            lists[list][string.sub(field, 3)] = true
        end
    end
    is_indexed = is_large and not born and next(changed) == nil
    if is_indexed then
        write_list('writers')
        write_list('properties')
        write_index(head[4])
    end
end

-- Returns the names in a list; nil if it can't be read.
local function read_list(list)
    local text = unsealed(redis.call('HGET', key, list))
    local read, found = pcall(cjson.decode, text)
    if not text or not read or type(found) ~= 'table' then
        return nil
    end
    local names_in_it = {}
    for _, name in pairs(found) do
        if type(name) ~= 'string' then
            return nil
        end
        names_in_it[name] = true
    end
    return names_in_it
end

-- Returns a list as a table that has the names as its keys: of 'writers' that are in doubt, or of
-- the tags of 'properties'.
local function members(list)
    look_at_index()
    if not lists[list] and is_indexed and not born then
        lists[list] = read_list(list)
    end
    if not lists[list] then
        scan()
    end
    return lists[list]
end

-- Gives the tag a new version.
local function renew_version(tag)
    look_at_index()
    redis.call('HSET', key, 'v:' .. tag, token)
    changed['v:' .. tag] = true
end

local function set_doubt(writer, doubt)
    look_at_index()
    redis.call('HSET', key, 'd:' .. writer, cjson.encode(doubt))
    changed['d:' .. writer] = true
end

local function drop_doubt(writer)
    look_at_index()
    redis.call('HDEL', key, 'd:' .. writer)
    changed['d:' .. writer] = false
end

-- Brings the index up to what this script has changed.
local function keep_index()
    local is_written = {}
    for field, is_there in pairs(is_indexed and changed or {}) do
        local list = list_of(field)
        if list then
            local found, name = members(list), string.sub(field, 3)
            if (found[name] or false) ~= is_there then
                found[name] = is_there or nil
                is_written[list] = true
            end
        end
    end
    -- the lists may also have turned out to be damaged
    local was_indexed = is_indexed
    if not was_indexed then
        scan()
    end
    for _, list in ipairs({'writers', 'properties'}) do
        if is_written[list] or not was_indexed then
            write_list(list)
        end
    end
    write_index(token)
end

-- The log of changes: a list with an entry for each epoch, as sealed MessagePack: the epoch before,
-- this one, and the fields that were changed in between. snapshot.lua sends by it what has changed.
--
-- An entry is true for ever, whatever becomes of the hash and of the other entries: no epoch comes
-- twice, and an entry is written together with the change that it tells of. So the log may be
-- shortened, lost, or have gaps. There is a gap where an epoch was begun without an entry: by
-- renew_epoch(), or by a program that knows no log. And if the log can't be reached, the script goes
-- on: it is not among the script's keys, because a cluster refuses commands of several keys while
-- they move to another node.
--
-- The most entries, bytes of an entry, and seconds that the log is kept for after its last entry:
-- readers that have been away for longer are sent all.
local MAX_ENTRIES, MAX_ENTRY, KEPT_SECONDS = 128, 16384, 3600

local function write_log()
    local fields = {}
    for field in pairs(changed) do
        fields[#fields + 1] = field
    end
    local entry = sealed(cmsgpack.pack({head[4], token, fields}))
    if #entry > MAX_ENTRY then
        return
    end
    local length = redis.pcall('RPUSH', log, entry)
    if type(length) ~= 'number' then  -- it is no list
        redis.pcall('UNLINK', log)
        length = redis.pcall('RPUSH', log, entry)
    end
    if type(length) ~= 'number' then
        return
    end
    if length > MAX_ENTRIES then
        redis.call('LTRIM', log, -MAX_ENTRIES, -1)
    end
    redis.call('EXPIRE', log, KEPT_SECONDS)
end

-- Begins a new epoch after changes by renew_version(), set_doubt() and drop_doubt() alone. Whoever
-- knows the epoch before is sent these.
local function renew_epoch_by_changes()
    renew_epoch()
    if not born and redis.call('HLEN', key) > SMALL then
        keep_index()
        write_log()
    end
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

-- Returns the tags that are in the doubts of other writers than `writer`, as a set.
local function doubted_beside(writer)
    local doubted = {}
    for other in pairs(members('writers')) do
        local doubt = other ~= writer and doubt_of(other)
        for _, tag in ipairs(doubt and doubt.tags or {}) do
            doubted[tag] = true
        end
    end
    return doubted
end

-- Returns a tag that has another version than in the stamp, or that is in the doubt of
-- another writer than `writer`; nil if the stamp holds. If `outlasting`, a version of a
-- quarantine also holds after its end. A script that asks about several stamps gives `doubted`,
-- what doubted_beside() has returned since it began.
local function broken(stamp, writer, outlasting, doubted)
    if next(stamp) == nil then
        return nil
    end
    -- first the doubts: if one can't be read, there are other versions afterwards
    doubted = doubted or doubted_beside(writer)
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
