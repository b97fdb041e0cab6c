#!lua flags=allow-oom
-- KEYS: record of groups, record of the topic, notes of deleted groups, as many streams as ARGV[3] says, then the
-- group's own keys. ARGV: field of the record, consumer group, number of streams, how long notes are kept in ms, and how
-- many. That it was deleted is noted: else it was lost.
redis.call('HDEL', KEYS[1], ARGV[1])
if redis.call('EXISTS', KEYS[2]) == 1 then
  redis.call('ZADD', KEYS[3], now_ms(), ARGV[1])
  redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now_ms() - tonumber(ARGV[4]))
  redis.call('ZREMRANGEBYRANK', KEYS[3], 0, -1 - tonumber(ARGV[5]))
end
local streams = tonumber(ARGV[3])
for i = 4, 3 + streams do redis.pcall('XGROUP', 'DESTROY', KEYS[i], ARGV[2]) end
for i = 4 + streams, #KEYS do redis.call('DEL', KEYS[i]) end
return 1
