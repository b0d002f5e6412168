-- Gives new versions to the tags, and to those of the writer's doubt, and ends the doubt,
-- after COMMIT has returned.
--
-- KEYS[1], ARGV[1], ARGV[2]  see common.lua
-- ARGV[3]  the writer's id
-- ARGV[4]  JSON: list of tags
-- Reply:   1
-- Atomic: a reader between the end of the doubt and the new versions would take values
-- for valid that were stored before the commit.
local doubt = doubt_of(ARGV[3])
for _, tag in ipairs(cjson.decode(ARGV[4])) do
    renew_version(tag)
end
for _, tag in ipairs(doubt and doubt.tags or {}) do
    renew_version(tag)
end
drop_doubt(ARGV[3])
renew_epoch_by_changes()
return 1
