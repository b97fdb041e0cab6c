#!lua flags=allow-oom
-- KEYS: leases, guard. ARGV: partition, "epoch|owner", name/id. Returns 1, or 0 when the lease is another's.
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[2], ARGV[3], 1)
return 1
