-- KEYS: members, dead letters, delayed set, then streams of copies (as many as ARGV[2] says), then the topic's streams.
-- ARGV: consumer group, number of streams of copies. Settled copies are deleted, so what is left is what waits.
-- Returns {lag or -1, pending, oldest unhandled in ms or -1, members, dead letters, now, streams that hand out nothing}.
local lag, pending, oldest = redis.call('ZCARD', KEYS[3]), 0, -1
local copies, now, strayed = tonumber(ARGV[2]), now_ms(), {}
for i = 4, #KEYS do
  local groups = redis.pcall('XINFO', 'GROUPS', KEYS[i])
  if not failed(groups) then
    for _, group in ipairs(groups) do
      if info(group, 'name') == ARGV[1] then
        local held = info(group, 'pending')
        local behind = info(group, 'lag')
        local next = redis.call('XRANGE', KEYS[i], '(' .. info(group, 'last-delivered-id'), '+', 'COUNT', 1)
        if astray(group, KEYS[i], now) then
          behind = nil
          strayed[#strayed + 1] = KEYS[i]
        elseif i < 4 + copies then
          behind = redis.call('XLEN', KEYS[i]) - held
        elseif #next == 0 then
          behind = 0
        elseif behind then
          -- What somebody trimmed before it was handed out counts, on Redis, for ever; see trim.
          behind = math.min(behind, redis.call('XLEN', KEYS[i]))
        end
        if behind and lag >= 0 then lag = lag + math.max(0, behind) else lag = -1 end
        pending = pending + held
        local first = nil
        if held > 0 then first = redis.call('XPENDING', KEYS[i], ARGV[1])[2] end
        if not first and #next > 0 then first = next[1][1] end
        if first then
          local ms = tonumber(string.match(first, '^%d+'))
          if oldest < 0 or ms < oldest then oldest = ms end
        end
      end
    end
  end
end
return {lag, pending, oldest, redis.call('ZCOUNT', KEYS[1], now, '+inf'), redis.call('XLEN', KEYS[2]), now, strayed}
