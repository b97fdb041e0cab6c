-- KEYS: members, dead letters, then streams. ARGV: consumer group.
-- Returns {lag or -1, pending, oldest unhandled in ms or -1, members, dead letters, now, streams with the group}.
local lag, pending, oldest, known = 0, 0, -1, 0
for i = 3, #KEYS do
  local groups = redis.pcall('XINFO', 'GROUPS', KEYS[i])
  if not failed(groups) then
    for _, group in ipairs(groups) do
      if info(group, 'name') == ARGV[1] then
        known = known + 1
        local behind = info(group, 'lag')
        if behind and lag >= 0 then lag = lag + behind else lag = -1 end
        pending = pending + info(group, 'pending')
        local first = nil
        if info(group, 'pending') > 0 then first = redis.call('XPENDING', KEYS[i], ARGV[1])[2] end
        if not first then
          local next = redis.call('XRANGE', KEYS[i], '(' .. info(group, 'last-delivered-id'), '+', 'COUNT', 1)
          if #next > 0 then first = next[1][1] end
        end
        if first then
          local ms = tonumber(string.match(first, '^%d+'))
          if oldest < 0 or ms < oldest then oldest = ms end
        end
      end
    end
  end
end
local now = now_ms()
return {lag, pending, oldest, redis.call('ZCOUNT', KEYS[1], now, '+inf'), redis.call('XLEN', KEYS[2]), now, known}
