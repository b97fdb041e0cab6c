#!lua flags=allow-oom
-- KEYS: hash with the time of the last trim, then streams. ARGV: interval, history, retention (all ms; -1: none).
-- Removes what every group has handled and is older than `history`; beyond `retention` also what is not handled.
-- Returns how many entries were removed before every group had handled them; -1 when it was not due.
local now = now_ms()
-- A group that had not read all that was removed: Redis would count that as its lag for ever.
local function count_as_read(key, groups)
  local stream = redis.call('XINFO', 'STREAM', key)
  local entry, last = info(stream, 'first-entry'), info(stream, 'last-generated-id')
  local gone = info(stream, 'entries-added') - info(stream, 'length')
  for _, group in ipairs(groups) do
    local position = info(group, 'last-delivered-id')
    local behind = entry and id_less(position, entry[1]) or not entry and not id_less(last, position)
    if behind then redis.call('XGROUP', 'SETID', key, info(group, 'name'), position, 'ENTRIESREAD', gone) end
  end
end
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
        if removed > 0 then count_as_read(KEYS[i], groups) end
      end
    end
  end
end
return lost
