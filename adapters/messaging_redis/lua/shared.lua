-- Milliseconds of the server's clock: members' clocks differ.
local function now_ms()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end
-- The id of an entry as two numbers would lose digits: ids are compared by their parts.
local function id_less(a, b)
  local am, as = string.match(a, '^(%d+)%-?(%d*)$')
  local bm, bs = string.match(b, '^(%d+)%-?(%d*)$')
  if tonumber(am) ~= tonumber(bm) then return tonumber(am) < tonumber(bm) end
  return tonumber(as ~= '' and as or '0') < tonumber(bs ~= '' and bs or '0')
end
-- All fields as one value; entries.unpack reads it.
local function pack_fields(fields)
  local parts = {}
  for i, part in ipairs(fields) do parts[i] = #part .. ':' .. part end
  return table.concat(parts)
end
local function field_of(fields, name)
  for i = 1, #fields, 2 do
    if fields[i] == name then return fields[i + 1] end
  end
  return nil
end
-- The fields of a copy, from the entry that is copied.
local function copy_of(fields, copied, origin, attempt, failure, returns, deliveries)
  local packed = copied and field_of(fields, '_entry') or pack_fields(fields)
  return {'_entry', packed, '_origin', origin, '_attempt', attempt, '_failure', failure,
    '_returns', returns, '_deliveries', deliveries}
end
-- Value of a field in a flat reply such as XINFO's.
local function info(reply, name)
  for i = 1, #reply, 2 do
    if reply[i] == name then return reply[i + 1] end
  end
  return nil
end
local function failed(reply)
  return type(reply) == 'table' and reply.err
end
-- Makes a consumer group, and its stream; one that is there stays as it is. Returns whether it was made, or an error.
local function make_group(key, name, first)
  local reply = redis.pcall('XGROUP', 'CREATE', key, name, first, 'MKSTREAM')
  if not failed(reply) then return true end
  if string.sub(reply.err, 1, 9) == 'BUSYGROUP' then return false end
  return false, redis.error_reply(reply.err)
end
local function group_of(key, name)
  local groups = redis.pcall('XINFO', 'GROUPS', key)
  if failed(groups) then return nil end
  for _, group in ipairs(groups) do
    if info(group, 'name') == name then return group end
  end
  return nil
end
local function last_id(key)
  return info(redis.call('XINFO', 'STREAM', key), 'last-generated-id')
end
-- Whether nothing that is added now is handed to a group: its position is beyond the end of the stream and in the
-- future. Not so with a start in the future that a program asked for, which Topics marks by the last sequence number.
local function astray(group, key, now)
  local position = info(group, 'last-delivered-id')
  local ms, sequence = string.match(position, '^(%d+)%-(%d+)$')
  if tonumber(ms) <= now then return false end
  if sequence == '18446744073709551615' and tonumber(ms) < 253402300800000 then return false end
  return id_less(last_id(key), position)
end
