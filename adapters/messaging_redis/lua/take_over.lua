#!lua flags=allow-oom
-- KEYS: guard, then streams. ARGV: consumer group, consumer, shortest lease in ms, limit, names of the streams.
-- Takes entries whose owner has shown no life for its own lease, which its name ends with. Counted as a hand-over.
-- Returns {{index, id, fields, count, marked}, ...}.
local out, limit = {}, tonumber(ARGV[4])
for i = 2, #KEYS do
  local key, start, pages = KEYS[i], '-', 0
  while #out < limit and pages < 10 do
    local idle = redis.call('XPENDING', key, ARGV[1], 'IDLE', ARGV[3], start, '+', 100)
    for _, item in ipairs(idle) do
      if #out >= limit then break end
      local lease = tonumber(string.match(item[2], '~(%d+)$')) or tonumber(ARGV[3])
      if item[3] >= lease then
        local taken = redis.call('XCLAIM', key, ARGV[1], ARGV[2], lease, item[1])
        if taken[1] then
          local mark = redis.call('HGET', KEYS[1], ARGV[3 + i] .. '/' .. item[1])
          out[#out + 1] = {i - 2, item[1], taken[1][2], item[4] + 1, mark and 1 or 0}
        else
          redis.call('XACK', key, ARGV[1], item[1])
        end
      end
    end
    if #idle < 100 then break end
    start, pages = '(' .. idle[#idle][1], pages + 1
  end
end
return out
