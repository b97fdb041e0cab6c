#!lua flags=allow-oom
-- KEYS: leases, then streams. ARGV: consumer group, then per stream: partition, "epoch|owner", the last id that the
-- owner knows to be handed out, or ''.
-- A position beyond the end of a stream is put back there: the owner alone reads, so what is newer was seen by nobody.
-- Returns per stream {position, or '' where it is not beyond the end, last id of the stream, 1 if it was put back}.
local out, now = {}, now_ms()
for i = 2, #KEYS do
  local at = 3 * i - 4
  local found = {'', '', 0}
  local group = redis.call('HGET', KEYS[1], ARGV[at]) == ARGV[at + 1] and group_of(KEYS[i], ARGV[1])
  if group then
    local position, last = info(group, 'last-delivered-id'), last_id(KEYS[i])
    if id_less(last, position) then
      local back = ARGV[at + 2] ~= '' and astray(group, KEYS[i], now)
      if back then redis.call('XGROUP', 'SETID', KEYS[i], ARGV[1], ARGV[at + 2]) end
      found = {position, last, back and 1 or 0}
    end
  end
  out[#out + 1] = found
end
return out
