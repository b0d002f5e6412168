-- Enters an identity in the tenant's list, after the database was found to have it.
--
-- KEYS[1], ARGV[1], ARGV[2]  see common.lua
-- KEYS[2]  the tenant's list of identities, a hash:
--            run_id      that of the server on which the rest was written
--            token       renewed by every identity that is new in the list
--            i:IDENTITY  when a process last found it (seconds, the server's clock)
-- ARGV[3]  the identity
-- ARGV[4]  the token of the list before the database was asked; '' if there was none
-- ARGV[5]  the beginning of the keys of the tenant's versions, which an identity completes;
--          with the hash tag of KEYS, so the keys lie on the same node
-- ARGV[6]  the number of identities that the list keeps
-- ARGV[7]  seconds after which the list drops an identity, and Redis its versions
-- Reply:   the token of the list, with which the caller may go on; '' if the list is not as it
--          was before the database was asked: the answer may be older than another identity.
-- Atomic: of two processes that find two identities at once, the second one gets no token.
local list = KEYS[2]
-- more than processes list, with a margin for later releases
local MAX_LISTED = 1000
local earlier = redis.pcall('HMGET', list, 'run_id', 'token')
-- one of another server, or one that can't be read, is dropped: then all processes ask again
if earlier.err or earlier[1] ~= run_id or not is_token(earlier[2])
    or redis.call('HLEN', list) > MAX_LISTED
then
    redis.call('UNLINK', list)
    redis.call('HSET', list, 'run_id', run_id)
end
local before = redis.call('HGET', list, 'token') or ''
local is_new = redis.call('HSET', list, 'i:' .. ARGV[3], now()) == 1
redis.call('PERSIST', key)
if not is_new then
    return before == ARGV[4] and before or ''
end

local found = {}
local fields = redis.call('HGETALL', list)
for at = 1, #fields, 2 do
    if string.sub(fields[at], 1, 2) == 'i:' and fields[at] ~= 'i:' .. ARGV[3] then
        local since = tonumber(fields[at + 1])
        -- a moment that can't be read, or in the future, is that of no process
        since = since and since <= now() and since or 0
        found[#found + 1] = {identity = string.sub(fields[at], 3), at = since}
    end
end
table.sort(found, function(one, other) return one.at > other.at end)
for number, other in ipairs(found) do
    if number >= tonumber(ARGV[6]) or now() - other.at > tonumber(ARGV[7]) then
        redis.call('HDEL', list, 'i:' .. other.identity)
        redis.call('DEL', ARGV[5] .. other.identity)
    else
        redis.call('EXPIRE', ARGV[5] .. other.identity, ARGV[7])
    end
end
redis.call('HSET', list, 'token', token)
return before == ARGV[4] and token or ''
