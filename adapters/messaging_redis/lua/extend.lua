#!lua flags=allow-oom
-- KEYS: streams. ARGV: consumer group, consumer, idle time to set in ms, then per item: stream, id.
-- The owner is checked first: a blind claim would steal an entry back. Returns 1 or 0 per item.
local out = {}
for i = 4, #ARGV, 2 do
  local key, id = KEYS[tonumber(ARGV[i])], ARGV[i + 1]
  local mine = redis.pcall('XPENDING', key, ARGV[1], id, id, 1)
  if failed(mine) or #mine == 0 or mine[1][2] ~= ARGV[2] then
    out[#out + 1] = 0
  else
    redis.call('XCLAIM', key, ARGV[1], ARGV[2], 0, id, 'IDLE', ARGV[3], 'JUSTID')
    out[#out + 1] = 1
  end
end
return out
