-- KEYS: dead letters, then target streams. ARGV: consumer group, then per letter: id, target, number of fields, fields.
-- The copy is stored first, then the letter is removed. Returns per letter '' or what went wrong.
local out = {}
local i = 2
while i <= #ARGV do
  local id, key, n = ARGV[i], KEYS[1 + tonumber(ARGV[i + 1])], tonumber(ARGV[i + 2])
  if #redis.call('XRANGE', KEYS[1], id, id) == 0 then
    out[#out + 1] = 'gone'
  else
    local made = redis.pcall('XGROUP', 'CREATE', key, ARGV[1], '0', 'MKSTREAM')
    local reply = redis.pcall('XADD', key, '*', unpack(ARGV, i + 3, i + 2 + n))
    if failed(reply) then
      out[#out + 1] = reply.err
    else
      redis.call('XDEL', KEYS[1], id)
      out[#out + 1] = ''
    end
  end
  i = i + n + 3
end
return out
