#!lua flags=allow-oom
-- KEYS: guard, then streams. ARGV: consumer group, consumer, limit, names of the streams, '', then what is held here
-- as name/id. Entries that are ours on the server but were lost on the way here: handed out again, uncounted.
-- Returns as take_over.
local held, names, at = {}, {}, 4
while ARGV[at] ~= '' do names[#names + 1] = ARGV[at]; at = at + 1 end
for i = at + 1, #ARGV do held[ARGV[i]] = true end
local out, limit = {}, tonumber(ARGV[3])
for i = 2, #KEYS do
  local key, start = KEYS[i], '-'
  while #out < limit do
    local own = redis.call('XPENDING', key, ARGV[1], start, '+', 100, ARGV[2])
    for _, item in ipairs(own) do
      local name = names[i - 1] .. '/' .. item[1]
      if not held[name] and #out < limit then
        local entry = redis.call('XRANGE', key, item[1], item[1])
        if #entry == 0 then
          redis.call('XACK', key, ARGV[1], item[1])
        else
          redis.call('HDEL', KEYS[1], name)
          redis.call('XCLAIM', key, ARGV[1], ARGV[2], 0, item[1], 'JUSTID')
          out[#out + 1] = {i - 2, item[1], entry[1][2], item[4], 0}
        end
      end
    end
    if #own < 100 then break end
    start = '(' .. own[#own][1]
  end
end
return out
