#!lua flags=allow-oom
-- KEYS: leases, failures, guard, dead letters, then streams. ARGV: consumer group, then per item: kind (ack, hold,
-- reject), stream, partition, "epoch|owner", name of the stream, id, failures, failure, deliveries, origin, hold (ms),
-- its fields or '' as for settle. A record of failures is "failures|hand-overs at that time|held until (ms)|failure".
-- Returns per item: ok, gone, lost, trimmed (as for settle), or what went wrong.
local out = {}
for i = 2, #ARGV, 12 do
  local kind, key, name, id = ARGV[i], KEYS[tonumber(ARGV[i + 1])], ARGV[i + 4], ARGV[i + 5]
  local field, copied, result = name .. '/' .. id, string.sub(name, 1, 1) == 'r', 'ok'
  if redis.call('HGET', KEYS[1], ARGV[i + 2]) ~= ARGV[i + 3] then
    result = 'lost'
  else
    local mine = redis.pcall('XPENDING', key, ARGV[1], id, id, 1)
    if failed(mine) or #mine == 0 then
      result = 'gone'
    elseif kind == 'hold' then
      local held = string.format('%.0f', now_ms() + tonumber(ARGV[i + 10]))
      local record = ARGV[i + 6] .. '|' .. mine[1][4] .. '|' .. held .. '|' .. ARGV[i + 7]
      local reply = redis.pcall('HSET', KEYS[2], field, record)
      if failed(reply) then result = reply.err end
      redis.call('HDEL', KEYS[3], field)
    else
      if kind == 'reject' then
        local fields, packed = {'_entry', ARGV[i + 11]}, true
        if ARGV[i + 11] == '' then
          local entry = redis.call('XRANGE', key, id, id)
          fields, packed = #entry > 0 and entry[1][2], copied
        end
        if fields then
          local copy = copy_of(fields, packed, ARGV[i + 9], ARGV[i + 6], ARGV[i + 7], '0', ARGV[i + 8])
          local reply = redis.pcall('XADD', KEYS[4], '*', unpack(copy))
          if failed(reply) then result = reply.err end
        else
          result = 'trimmed'
        end
      end
      if result == 'ok' then
        redis.call('XACK', key, ARGV[1], id)
        if copied then redis.call('XDEL', key, id) end
        redis.call('HDEL', KEYS[2], field)
        redis.call('HDEL', KEYS[3], field)
      end
    end
  end
  out[#out + 1] = result
end
return out
