-- Returns values, and what is left of their lifetimes.
--
-- KEYS[1], ARGV[1], ARGV[2]  see common.lua
-- KEYS[2] and all after it   the values' keys
-- ARGV[3]  the most bytes that a value may have
-- ARGV[4]  '1' if the caller needs to know when they expire
-- Reply:   for each key the value; nil if there is none, or the key is no string; -3 if it has more
--          bytes. If the caller needs to know, as many numbers: milliseconds until each expires,
--          -1 if it does not.
-- Atomic: the time that is left is that of the value.
local names, most = {}, tonumber(ARGV[3])
for number = 2, #KEYS do
    names[number - 1] = KEYS[number]
end
local found = {}
-- not more at once than unpack() takes
for first = 1, #names, 1000 do
    local last = math.min(first + 999, #names)
    for number, value in ipairs(redis.call('MGET', unpack(names, first, last))) do
        found[first + number - 1] = value and #value > most and -3 or value
    end
end
if ARGV[4] == '1' then
    for _, name in ipairs(names) do
        found[#found + 1] = redis.call('PTTL', name)
    end
end
return found
