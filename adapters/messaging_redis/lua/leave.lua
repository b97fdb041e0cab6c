-- KEYS: members, then streams. ARGV: consumer group, consumer, 1 to look for the consumers of dead members as well.
-- Deletes consumers that own nothing: deleting one that does would drop its pending entries.
if ARGV[3] == '1' then
  local now = now_ms()
  for i = 2, #KEYS do
    local consumers = redis.pcall('XINFO', 'CONSUMERS', KEYS[i], ARGV[1])
    if not failed(consumers) then
      for _, consumer in ipairs(consumers) do
        local name = info(consumer, 'name')
        local alive = redis.call('ZSCORE', KEYS[1], name)
        if info(consumer, 'pending') == 0 and info(consumer, 'idle') > 600000 and string.find(name, '~%d+$')
            and not (alive and tonumber(alive) > now) then
          redis.call('XGROUP', 'DELCONSUMER', KEYS[i], ARGV[1], name)
        end
      end
    end
  end
  return 1
end
redis.call('ZREM', KEYS[1], ARGV[2])
for i = 2, #KEYS do
  local own = redis.pcall('XPENDING', KEYS[i], ARGV[1], '-', '+', 1, ARGV[2])
  if not failed(own) and #own == 0 then redis.pcall('XGROUP', 'DELCONSUMER', KEYS[i], ARGV[1], ARGV[2]) end
end
return 1
