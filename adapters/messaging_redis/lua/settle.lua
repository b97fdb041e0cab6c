#!lua flags=allow-oom
-- KEYS: guard, dead letters, delayed set, retry stream, then streams. ARGV: consumer group, consumer, then per item:
-- kind (retry, release, reject), stream, 1 if it is the retry stream, id, name/id, delay in ms, attempt, failure, returns,
-- deliveries, origin, its fields as entries.pack writes them or '', to be taken from the stream. The copy is stored
-- first, then the entry is given up (1). Returns per item: ok, gone (settled before), lost (another owner), trimmed
-- (ours, and not in the stream any more: nothing was done, its fields are needed), or what went wrong.
local out, now = {}, now_ms()
for i = 3, #ARGV, 12 do
  local kind, key, copied, id = ARGV[i], KEYS[tonumber(ARGV[i + 1])], ARGV[i + 2] == '1', ARGV[i + 3]
  local mine = redis.call('XPENDING', key, ARGV[1], id, id, 1)
  local result = 'ok'
  if #mine == 0 then
    result = 'gone'
  elseif mine[1][2] ~= ARGV[2] then
    result = 'lost'
  else
    local fields, packed = {'_entry', ARGV[i + 11]}, true
    if ARGV[i + 11] == '' then
      local entry = redis.call('XRANGE', key, id, id)
      fields, packed = #entry > 0 and entry[1][2], copied
    end
    if not fields then
      result = 'trimmed'
    else
      local copy = copy_of(fields, packed, ARGV[i + 10], ARGV[i + 6], ARGV[i + 7], ARGV[i + 8], ARGV[i + 9])
      local delay, reply = tonumber(ARGV[i + 5]), nil
      if kind == 'reject' then
        reply = redis.pcall('XADD', KEYS[2], '*', unpack(copy))
      elseif delay > 0 then
        reply = redis.pcall('ZADD', KEYS[3], now + delay, cmsgpack.pack(copy))
      else
        reply = redis.pcall('XADD', KEYS[4], '*', unpack(copy))
      end
      if failed(reply) then result = reply.err end
    end
    if result == 'ok' then
      redis.call('XACK', key, ARGV[1], id)
      if copied then redis.call('XDEL', key, id) end
      redis.call('HDEL', KEYS[1], ARGV[i + 4])
    end
  end
  out[#out + 1] = result
end
return out
