#!lua flags=allow-oom
-- KEYS: record. ARGV: '1' to create, then field, value, ... Returns what is stored, in the same order.
local out = {}
for i = 2, #ARGV, 2 do
  if ARGV[1] == '1' then redis.call('HSETNX', KEYS[1], ARGV[i], ARGV[i + 1]) end
  out[#out + 1] = redis.call('HGET', KEYS[1], ARGV[i])
end
return out
