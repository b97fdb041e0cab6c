#!lua flags=allow-oom
-- KEYS: delayed set, retry stream, members. ARGV: member, its time to live in ms, limit.
-- Puts what is due onto the retry stream and says that the member is there. Returns {moved, ms until the next or -1,
-- how many were no retries of ours, which are removed: one would hold all the others back}.
local now = now_ms()
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now)
redis.call('ZADD', KEYS[3], now + tonumber(ARGV[2]), ARGV[1])
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[3])
local foreign = 0
local function is_copy(copy)
  if type(copy) ~= 'table' or #copy == 0 or #copy % 2 == 1 then return false end
  for _, part in ipairs(copy) do
    if type(part) ~= 'string' then return false end
  end
  return true
end
for _, member in ipairs(due) do
  local readable, copy = pcall(cmsgpack.unpack, member)
  if readable and is_copy(copy) then
    redis.call('XADD', KEYS[2], '*', unpack(copy))
  else
    foreign = foreign + 1
  end
  redis.call('ZREM', KEYS[1], member)
end
local next = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
if #next == 0 then return {#due, -1, foreign} end
return {#due, math.max(0, tonumber(next[2]) - now), foreign}
