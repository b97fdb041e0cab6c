#!lua flags=allow-oom
-- KEYS: leases, failures, guard, then streams. ARGV: consumer group, consumer, limit, then per stream: partition,
-- "epoch|owner", its name, cursor ('>' or the last id that was read again), 1 if a
-- hand-over counts, 2 if the last id is known.
-- A blocking read cannot be fenced; this one does not block. Pending entries come first, in order, page by page.
-- Returns the server's time in ms, then per stream {state, entries, last id}; state: ok, end (nothing more is pending), astray, lost, nogroup.
-- An entry is {id, fields, count, record of failures or '', 1 if marked, 1 if it was deleted}.
local out, room = {now_ms()}, tonumber(ARGV[3])
local group, consumer = ARGV[1], ARGV[2]
local function pending(key, name, cursor, counted)
  local start = cursor == '0' and '-' or '(' .. cursor
  local list = redis.pcall('XPENDING', key, group, start, '+', room)
  if failed(list) then return 'nogroup', {}, '' end
  local entries, last = {}, cursor
  for _, item in ipairs(list) do
    local id, fields, count = item[1], nil, item[4]
    last = id
    if counted then
      local claimed = redis.call('XCLAIM', key, group, consumer, 0, id)
      if claimed[1] then fields, count = claimed[1][2], count + 1 end
    else
      local entry = redis.call('XRANGE', key, id, id)
      if #entry > 0 then fields = entry[1][2] end
      redis.call('HDEL', KEYS[3], name .. '/' .. id)
    end
    if fields then
      local record = redis.call('HGET', KEYS[2], name .. '/' .. id)
      local mark = redis.call('HGET', KEYS[3], name .. '/' .. id)
      entries[#entries + 1] = {id, fields, count, record or '', mark and 1 or 0, 0}
    else
      redis.call('XACK', key, group, id)
      redis.call('HDEL', KEYS[2], name .. '/' .. id)
      redis.call('HDEL', KEYS[3], name .. '/' .. id)
      entries[#entries + 1] = {id, {}, count, '', 0, 1}
    end
  end
  return #list < room and 'end' or 'ok', entries, last
end
local function fresh(key, name, known)
  local reply = redis.pcall('XREADGROUP', 'GROUP', group, consumer, 'COUNT', room, 'STREAMS', key, '>')
  if failed(reply) and string.sub(name, 1, 1) == 'r'
      and not failed(redis.pcall('XGROUP', 'CREATE', key, group, '0')) then
    reply = redis.pcall('XREADGROUP', 'GROUP', group, consumer, 'COUNT', room, 'STREAMS', key, '>')
  end
  if failed(reply) then
    if string.sub(reply.err, 1, 7) == 'NOGROUP' then return 'nogroup', {}, '' end
    return redis.error_reply(reply.err)
  end
  local entries = {}
  if reply then
    for i, entry in ipairs(reply[1][2]) do entries[i] = {entry[1], entry[2], 1, '', 0, 0} end
    return 'ok', entries, entries[#entries][1]
  end
  if known then return 'ok', entries, '' end
  local place = group_of(key, group)
  return place and astray(place, key, out[1]) and 'astray' or 'ok', entries, last_id(key)
end
for at = 4, #ARGV, 5 do
  local key = KEYS[4 + (at - 4) / 5]
  local state, entries, last = 'ok', {}, ''
  if redis.call('HGET', KEYS[1], ARGV[at]) ~= ARGV[at + 1] then
    state = 'lost'
  elseif room > 0 then
    if ARGV[at + 3] == '>' then
      state, entries, last = fresh(key, ARGV[at + 2], ARGV[at + 4] == '2')
      if type(state) == 'table' then return state end
    else
      state, entries, last = pending(key, ARGV[at + 2], ARGV[at + 3], ARGV[at + 4] == '1')
    end
    room = room - #entries
  end
  out[#out + 1] = {state, entries, last}
end
return out
