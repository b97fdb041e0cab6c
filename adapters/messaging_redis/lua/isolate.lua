#!lua flags=allow-oom
-- KEYS: guard, stream. ARGV: consumer group, consumer, id, name/id. Returns 1 when the mark is stored, 0 when not ours.
local mine = redis.pcall('XPENDING', KEYS[2], ARGV[1], ARGV[3], ARGV[3], 1)
if failed(mine) or #mine == 0 or mine[1][2] ~= ARGV[2] then return 0 end
redis.call('XCLAIM', KEYS[2], ARGV[1], ARGV[2], 0, ARGV[3], 'JUSTID')
redis.call('HSET', KEYS[1], ARGV[4], 1)
return 1
