-- Makes the tags of properties known to all writers. A writer whose code does not have
-- a property evicts it by any change.
--
-- KEYS[1], ARGV[1], ARGV[2]  see common.lua
-- ARGV[3]  JSON: list of tags
-- Reply:   1
-- Atomic: writers that are about to commit could not know of new tags, so their doubts get
-- them at once; publish.lua gives the tags of the doubt new versions.
local doubts = {}
for writer in pairs(members('writers')) do
    doubts[writer] = doubt_of(writer)
end
local added = {}
for _, tag in ipairs(cjson.decode(ARGV[3])) do
    if redis.call('HEXISTS', key, 'v:' .. tag) == 0 then
        renew_version(tag)
        added[#added + 1] = tag
    end
end
if #added > 0 then
    for writer, doubt in pairs(doubts) do
        for _, tag in ipairs(added) do
            doubt.tags[#doubt.tags + 1] = tag
        end
        set_doubt(writer, doubt)
    end
    renew_epoch_by_changes()
end
return 1
