#!lua flags=allow-oom
-- KEYS: members, leases. ARGV: member, lease in ms, number of partitions, 1 to leave, then partitions to give up.
-- Heartbeat, expiry, quota, sticky acquisition and the surplus to drain. A lease is "epoch|owner"; the epoch grows with
-- each owner. Returns {{partition, epoch, 1 if new, ...}, {surplus partitions}, alive members}.
local now, me, lease, partitions = now_ms(), ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
-- The first write is one that is always allowed.
redis.call('ZREM', KEYS[1], '')
local owners, epochs = {}, {}
local stored = redis.call('HGETALL', KEYS[2])
local last = now
for i = 1, #stored, 2 do
  if stored[i] == 'beat' then
    last = tonumber(stored[i + 1])
  else
    local p = tonumber(stored[i])
    local epoch, owner = string.match(stored[i + 1], '^(%d+)|(.*)$')
    epochs[p], owners[p] = tonumber(epoch), owner
  end
end
local function own(p, owner)
  owners[p] = owner
  redis.call('HSET', KEYS[2], p, string.format('%.0f', epochs[p] or 0) .. '|' .. owner)
end
if ARGV[4] == '1' then
  for p, owner in pairs(owners) do
    if owner == me then own(p, '') end
  end
  redis.call('ZREM', KEYS[1], me)
  return {{}, {}, 0}
end
-- Nobody has beaten for a while: that was the server's outage, not the members'. Everyone gets a new lease, so that
-- the first to come back does not take all. Or the clock was set back: a dead member would live as long as that was.
if now - last > lease / 2 or last > now then
  for _, member in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
    redis.call('ZADD', KEYS[1], now + lease, member)
  end
end
redis.call('HSET', KEYS[2], 'beat', string.format('%.0f', now))
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZADD', KEYS[1], now + lease, me)
local members = redis.call('ZRANGE', KEYS[1], 0, -1)
table.sort(members)
local alive, rank = {}, 0
for i, member in ipairs(members) do
  alive[member] = true
  if member == me then rank = i - 1 end
end
for i = 5, #ARGV do
  local p = tonumber(ARGV[i])
  if owners[p] == me then own(p, '') end
end
local quota = math.floor(partitions / #members)
if rank < partitions % #members then quota = quota + 1 end
local mine, fresh, given = {}, {}, {}
for i = 5, #ARGV do given[tonumber(ARGV[i])] = true end
for p = 0, partitions - 1 do
  if owners[p] == me then mine[#mine + 1] = p end
end
for p = 0, partitions - 1 do
  if #mine >= quota then break end
  if not given[p] and (not owners[p] or not alive[owners[p]]) then
    -- The time: a fence is larger than all before it even when Redis has lost them.
    epochs[p] = math.max((epochs[p] or 0) + 1, now)
    own(p, me)
    mine[#mine + 1] = p
    fresh[p] = true
  end
end
local held, surplus = {}, {}
for i, p in ipairs(mine) do
  held[#held + 1] = p
  held[#held + 1] = epochs[p]
  held[#held + 1] = fresh[p] and 1 or 0
  if i > quota then surplus[#surplus + 1] = p end
end
return {held, surplus, #members}
