#!lua flags=allow-oom
-- KEYS: leases, then streams. ARGV: consumer group, then per stream: partition, "epoch|owner", number of ids, ids.
-- Returns per stream 1, or 0 when the lease is another's.
local out, at = {}, 2
for i = 2, #KEYS do
  local n = tonumber(ARGV[at + 2])
  if redis.call('HGET', KEYS[1], ARGV[at]) == ARGV[at + 1] then
    redis.call('XACK', KEYS[i], ARGV[1], unpack(ARGV, at + 3, at + 2 + n))
    out[#out + 1] = 1
  else
    out[#out + 1] = 0
  end
  at = at + 3 + n
end
return out
