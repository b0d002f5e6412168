-- Ends the doubt of a writer that did not commit; all versions stay.
--
-- KEYS[1], ARGV[1], ARGV[2]  see common.lua
-- ARGV[3]  the writer's id
-- Reply:   1
-- Atomic: the epoch changes together with the doubt, so that nobody goes on using a
-- snapshot that has the doubt.
drop_doubt(ARGV[3])
renew_epoch_by_changes()
return 1
