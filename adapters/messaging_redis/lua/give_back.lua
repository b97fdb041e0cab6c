#!lua flags=allow-oom
-- KEYS: leases, guard, then streams. ARGV: consumer group, consumer, then per item: stream, partition, "epoch|owner",
-- name/id, id. What was handed over and not settled was no hand-over: the next owner's read counts it again.
for i = 3, #ARGV, 5 do
  local key, id = KEYS[tonumber(ARGV[i])], ARGV[i + 4]
  if redis.call('HGET', KEYS[1], ARGV[i + 1]) == ARGV[i + 2] then
    local mine = redis.pcall('XPENDING', key, ARGV[1], id, id, 1)
    if not failed(mine) and #mine > 0 then
      redis.call('XCLAIM', key, ARGV[1], ARGV[2], 0, id, 'RETRYCOUNT', math.max(0, mine[1][4] - 1), 'JUSTID')
    end
    redis.call('HDEL', KEYS[2], ARGV[i + 3])
  end
end
return 1
