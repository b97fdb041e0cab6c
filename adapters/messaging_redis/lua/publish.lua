-- KEYS: stream. ARGV: number of fields, the fields, and again. Stops at the first that is refused (7).
-- Returns the ids; a refusal is '!' and its text, and nothing follows it.
local out = {}
local i = 1
while i <= #ARGV do
  local n = tonumber(ARGV[i])
  local reply = redis.pcall('XADD', KEYS[1], '*', unpack(ARGV, i + 1, i + n))
  if failed(reply) then
    out[#out + 1] = '!' .. reply.err
    return out
  end
  out[#out + 1] = reply
  i = i + n + 1
end
return out
