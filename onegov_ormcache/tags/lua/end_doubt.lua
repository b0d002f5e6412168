-- The writer did not commit: its doubt ends, all versions stay.
--
-- KEYS[1], ARGV[1], ARGV[2]  see common.lua
-- ARGV[3]  the writer's id
-- Reply:   1
-- Atomic with its epoch, so that nobody keeps a snapshot with the doubt.
redis.call('HDEL', key, 'd:' .. ARGV[3])
renew_epoch()
return 1
