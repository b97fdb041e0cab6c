#!lua flags=allow-oom
-- KEYS: the key's hash. ARGV: kind (extend, complete, clear), fence, ms (lease, time to live, time that the fence is
-- kept), 1 if there is a result, result. Returns 1, or 0 when the fence is not the newest.
local state, fence = unpack(redis.call('HMGET', KEYS[1], 'state', 'fence'))
if fence ~= ARGV[2] or state ~= 'progress' then return 0 end
if ARGV[1] == 'extend' then
  redis.call('HSET', KEYS[1], 'ends', string.format('%.0f', now_ms() + tonumber(ARGV[3])))
  local left = redis.call('PTTL', KEYS[1])
  if left >= 0 and left < tonumber(ARGV[3]) then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
elseif ARGV[1] == 'complete' then
  redis.call('HSET', KEYS[1], 'state', 'done')
  if ARGV[4] == '1' then redis.call('HSET', KEYS[1], 'result', ARGV[5]) end
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
else
  redis.call('HDEL', KEYS[1], 'state', 'digest', 'ends', 'owner', 'result')
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
return 1
