-- KEYS: stream, positions by mark, marks by time. ARGV: milliseconds for which marks are kept, then per message: its mark,
-- number of fields, the fields. What is known by its mark is not stored again. Stops at the first that is refused (7).
-- Returns the ids; a refusal is '!' and its text, and nothing follows it.
local out, now, keep = {}, now_ms(), tonumber(ARGV[1])
local old = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now - keep, 'LIMIT', 0, 1000)
if #old > 0 then
  redis.call('HDEL', KEYS[2], unpack(old))
  redis.call('ZREM', KEYS[3], unpack(old))
end
local i = 2
while i <= #ARGV do
  local mark, n = ARGV[i], tonumber(ARGV[i + 1])
  local id = redis.call('HGET', KEYS[2], mark)
  if not id then
    id = redis.pcall('XADD', KEYS[1], '*', unpack(ARGV, i + 2, i + 1 + n))
    if failed(id) then
      out[#out + 1] = '!' .. id.err
      break
    end
    redis.call('HSET', KEYS[2], mark, id)
    redis.call('ZADD', KEYS[3], now, mark)
  end
  out[#out + 1] = id
  i = i + n + 2
end
redis.call('PEXPIRE', KEYS[2], keep)
redis.call('PEXPIRE', KEYS[3], keep)
return out
