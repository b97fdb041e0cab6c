-- KEYS: hash with the time of the last trim, then streams. ARGV: interval, history, retention (all ms; -1: none).
-- Removes what every group has handled and is older than `history`; beyond `retention` also what is not handled.
-- Returns how many entries were removed before every group had handled them; -1 when it was not due.
local now = now_ms()
local last = tonumber(redis.call('HGET', KEYS[1], 'at') or '0')
if now - last < tonumber(ARGV[1]) and now >= last then return -1 end
redis.call('HSET', KEYS[1], 'at', now)
local lost = 0
for i = 2, #KEYS do
  local groups = redis.pcall('XINFO', 'GROUPS', KEYS[i])
  if not failed(groups) then
    local cut = string.format('%.0f-0', now - tonumber(ARGV[2]))
    for _, group in ipairs(groups) do
      local first = nil
      if info(group, 'pending') > 0 then first = redis.call('XPENDING', KEYS[i], info(group, 'name'))[2] end
      -- Without pending entries the last delivered one is handled; it is kept, which is simpler than its successor.
      if not first then first = info(group, 'last-delivered-id') end
      -- What such a group has handled is not known: all is kept until its position is mended.
      if astray(group, KEYS[i], now) then first = '0-0' end
      if id_less(first, cut) then cut = first end
    end
    redis.call('XTRIM', KEYS[i], 'MINID', cut)
    if tonumber(ARGV[3]) >= 0 then
      local oldest = string.format('%.0f-0', now - tonumber(ARGV[3]))
      if id_less(cut, oldest) then
        local removed = redis.call('XTRIM', KEYS[i], 'MINID', oldest)
        if #groups > 0 then lost = lost + removed end
      end
    end
  end
end
return lost
