-- KEYS: streams. ARGV: consumer group, consumer, limit. New entries, no more than `limit` of all streams together.
-- Returns {{index of the stream, {entries}}, ...}.
local out, room = {}, tonumber(ARGV[3])
for i, key in ipairs(KEYS) do
  if room <= 0 then break end
  local reply = redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', room, 'STREAMS', key, '>')
  if reply then
    local entries = reply[1][2]
    room = room - #entries
    out[#out + 1] = {i - 1, entries}
  end
end
return out
