-- KEYS: the key's hash. ARGV: digest, lease in ms, how long an unused fence is kept in ms, token.
-- Returns {state, fence or ms that remain, result or '', 1 if there is a result}; state: begun, progress, done, conflict.
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
local state, digest, ends, fence, result, owner =
  unpack(redis.call('HMGET', KEYS[1], 'state', 'digest', 'ends', 'fence', 'result', 'owner'))
if state == 'done' or state == 'progress' then
  if digest ~= ARGV[1] then return {'conflict', 0, '', 0} end
  if state == 'done' then return {'done', 0, result or '', result and 1 or 0} end
  if ARGV[4] ~= '' and owner == fence .. ' ' .. ARGV[4] then
    redis.call('HSET', KEYS[1], 'ends', string.format('%.0f', now + tonumber(ARGV[2])))
    redis.call('PEXPIRE', KEYS[1], math.max(tonumber(ARGV[2]), tonumber(ARGV[3])))
    return {'begun', fence, '', 0}
  end
  local remains = tonumber(ends) - now
  if remains > 0 then return {'progress', remains, '', 0} end
end
-- The clock's microseconds: a fence is larger than all before it even when they are forgotten.
local new = tonumber(t[1]) * 1000000 + tonumber(t[2])
if fence and tonumber(fence) >= new then new = tonumber(fence) + 1 end
new = string.format('%.0f', new)
-- The owner holds for its fence only: a program that knows of no owners leaves that of another's fence behind.
redis.call('HSET', KEYS[1], 'state', 'progress', 'digest', ARGV[1], 'fence', new, 'owner', new .. ' ' .. ARGV[4],
  'ends', string.format('%.0f', now + tonumber(ARGV[2])))
redis.call('HDEL', KEYS[1], 'result')
redis.call('PEXPIRE', KEYS[1], math.max(tonumber(ARGV[2]), tonumber(ARGV[3])))
return {'begun', new, '', 0}
