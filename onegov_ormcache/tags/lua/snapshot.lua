-- Returns the tenant's state, unless the caller has it already.
--
-- KEYS[1], ARGV[1], ARGV[2]  see common.lua
-- KEYS[2]  the tenant's list of identities, see identify.lua
-- ARGV[3]  the epoch that the caller knows, or ''
-- ARGV[4]  the token of the list of identities that the caller knows; '-' if the caller knows
--          no identity, and does not look at the list
-- Reply:   {token} if the list has another token, '' if it has none, or was written on another
--          server; else nil if the epoch is still the same; else {epoch, changed, gone} if all is
--          known that has changed since the epoch that the caller knows: fields and values,
--          alternating, and the fields that are not there any more; else all fields and values of
--          the hash, alternating.
-- Atomic: versions and doubts are those of one moment, and so is the token: a snapshot that is
-- newer than a new identity is never taken for one of an older identity.
if ARGV[4] ~= '-' then
    local listed = ''
    -- a list that is no hash gives an error, which is no text
    if redis.pcall('HGET', KEYS[2], 'run_id') == run_id then
        listed = redis.call('HGET', KEYS[2], 'token')
    end
    if listed == '' or listed ~= ARGV[4] then
        return {listed and #listed <= 64 and listed or ''}
    end
end
if not born and head[4] == ARGV[3] then
    return false
end

-- The most fields that are sent as changes.
local MAX_CHANGES = 1000
-- Entries of the log that are read at once; most callers are one or two epochs behind.
local READ_ENTRIES = 8

-- Returns an entry of the log; nil if it is none.
local function entry_of(bytes)
    local text = unsealed(bytes)
    local read, entry = pcall(cmsgpack.unpack, text)
    if not text or not read or type(entry) ~= 'table' or type(entry[1]) ~= 'string'
        or type(entry[3]) ~= 'table'
    then
        return nil
    end
    for _, field in ipairs(entry[3]) do
        local prefix = type(field) == 'string' and string.sub(field, 1, 2)
        if prefix ~= 'v:' and prefix ~= 'd:' then
            return nil
        end
    end
    return entry
end

-- Returns the fields that have changed since the epoch that the caller knows; nil if the log does
-- not tell.
--
-- The entries are followed from the present epoch back to the caller's. Each must have ended with
-- the epoch with which the one after it has begun. An entry has all changes between its two epochs
-- (see helpers.lua), so together they have all changes since. The present values of these fields are
-- sent, read in the same moment as the epoch, and all others are as the caller knows them. So the
-- caller has what it would have if all were sent. If a program has begun an epoch without an entry,
-- or an entry is lost or damaged, the chain does not reach the caller's epoch.
local function changed_fields()
    local epoch, fields, seen = head[4], {}, {}
    local last = -1
    while true do
        local entries = redis.pcall('LRANGE', log, last - READ_ENTRIES + 1, last)
        if entries.err or #entries == 0 then
            return nil
        end
        for number = #entries, 1, -1 do
            local entry = entry_of(entries[number])
            if not entry or entry[2] ~= epoch then
                return nil
            end
            for _, field in ipairs(entry[3]) do
                if not seen[field] then
                    seen[field] = true
                    fields[#fields + 1] = field
                end
            end
            if #fields > MAX_CHANGES then
                return nil
            end
            epoch = entry[1]
            if epoch == ARGV[3] then
                return fields
            end
        end
        last = last - #entries
    end
end

local length = redis.call('HLEN', key)
if length > MAX_FIELDS then
    bear('it has too many fields')
elseif length > SMALL and not born and ARGV[3] ~= '' then
    local fields = changed_fields()
    if fields then
        local values = #fields > 0 and redis.call('HMGET', key, unpack(fields)) or {}
        local found, gone, bytes = {}, {}, 0
        for number, field in ipairs(fields) do
            local value = values[number]
            if value then
                found[#found + 1], found[#found + 2] = field, value
                bytes = bytes + #value
            else
                gone[#gone + 1] = field
            end
        end
        if bytes <= MAX_STATE then
            return {head[4], found, gone}
        end
    end
end
local state = redis.call('HGETALL', key)
if #table.concat(state) > MAX_STATE then
    bear('it is too large')
    state = redis.call('HGETALL', key)
end
return state
