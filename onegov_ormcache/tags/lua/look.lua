-- Returns values, and what is left of the lifetimes of those that expire.
--
-- KEYS[1], ARGV[1], ARGV[2]  see common.lua
-- ARGV[3], ARGV[4]           see values.lua
-- KEYS[2] and all after it   the values' keys
-- Reply:   for each key the value; nil if there is none, or none that is sent. Then two numbers for
--          each that has a lifetime or too many bytes: which it is, from 0; and milliseconds until
--          it expires, -2 or -3, see values.lua.
-- Atomic: the time that is left is that of the value.
local names = {}
for number = 2, #KEYS do
    names[number - 1] = KEYS[number]
end
local found, timed = {}, {}
-- not more at once than unpack() takes
for first = 1, #names, 1000 do
    local last = math.min(first + 999, #names)
    for number, value in ipairs(redis.call('MGET', unpack(names, first, last))) do
        local at, left = first + number - 1, -1
        if value then
            value, left = sent(names[at], value)
        end
        found[at] = value
        if left ~= -1 then
            timed[#timed + 1], timed[#timed + 2] = at - 1, left
        end
    end
end
for _, each in ipairs(timed) do
    found[#found + 1] = each
end
return found
