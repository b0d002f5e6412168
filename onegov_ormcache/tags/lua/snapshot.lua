-- Returns the tenant's state, unless the caller has it already.
--
-- KEYS[1], ARGV[1], ARGV[2]  see common.lua
-- KEYS[2]  the tenant's list of identities, see identify.lua
-- ARGV[3]  the epoch that the caller knows, or ''
-- ARGV[4]  the token of the list of identities that the caller knows; '-' if the caller knows
--          no identity, and does not look at the list
-- Reply:   {token} if the list has another token, '' if it has none, or was written on another
--          server; else nil if the epoch is still the same; else all fields and values of the
--          hash, alternating.
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
if redis.call('HLEN', key) > MAX_FIELDS then
    bear('it has too many fields')
end
local state = redis.call('HGETALL', key)
if #table.concat(state) > MAX_STATE then
    bear('it is too large')
    state = redis.call('HGETALL', key)
end
return state
