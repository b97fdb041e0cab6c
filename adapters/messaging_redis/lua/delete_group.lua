-- KEYS: record of groups, number of streams in ARGV[3], the streams, then the group's own keys.
-- ARGV: field of the record, consumer group, number of streams.
redis.call('HDEL', KEYS[1], ARGV[1])
local streams = tonumber(ARGV[3])
for i = 2, 1 + streams do redis.pcall('XGROUP', 'DESTROY', KEYS[i], ARGV[2]) end
for i = 2 + streams, #KEYS do redis.call('DEL', KEYS[i]) end
return 1
