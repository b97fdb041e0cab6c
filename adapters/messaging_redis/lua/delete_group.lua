#!lua flags=allow-oom
-- KEYS: record of groups, record of the topic, as many streams as ARGV[3] says, then the group's own keys.
-- ARGV: field of the record, consumer group, number of streams. That it was deleted is noted: else it was lost.
redis.call('HDEL', KEYS[1], ARGV[1])
if redis.call('EXISTS', KEYS[2]) == 1 then redis.call('HSET', KEYS[2], 'deleted:' .. ARGV[1], 1) end
local streams = tonumber(ARGV[3])
for i = 3, 2 + streams do redis.pcall('XGROUP', 'DESTROY', KEYS[i], ARGV[2]) end
for i = 3 + streams, #KEYS do redis.call('DEL', KEYS[i]) end
return 1
