-- Comes before the scripts that read values: functions for their bytes, which tiers/stored.py packs.
--
-- Any program may have written the bytes, so nothing of them is trusted. A caller checks whatever it
-- is given; the scripts only decide what they send, and which locks they take.
--
-- ARGV[3]  what every value begins with. The length of its key follows (four bytes, big-endian), the
--          key, a byte that is not looked at, eight bytes that are 0 if the value does not expire,
--          the length of the stamp (four bytes, big-endian), and the stamp as MessagePack
-- ARGV[4]  the most bytes that a value may have
local MAGIC, MOST = ARGV[3], tonumber(ARGV[4])
local ENDLESS = '\0\0\0\0\0\0\0\0'

-- Returns what is sent of a value: its bytes, or false; and milliseconds until it expires. These are
-- -1 if it does not, -2 if it has a lifetime of which Redis does not know, and -3 if the key is no
-- string or has too many bytes. A value that nobody may use, because it is cut off or another key's,
-- may get any number.
local function sent(name, value)
    if type(value) ~= 'string' or #value > MOST then
        return false, -3
    end
    local first = #MAGIC + 4 + #name + 2
    local lifetime = string.sub(value, first, first + 7)
    if #lifetime < 8 or lifetime == ENDLESS then
        return value, -1
    end
    local left = redis.call('PTTL', name)
    return value, left < 0 and -2 or left
end
