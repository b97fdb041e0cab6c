#!lua flags=allow-oom
-- KEYS: record of groups, notes of deleted groups, retry stream, then the topic's streams. ARGV: create (1: also when
-- unknown; 0: only mend what is known), field of the record, value, consumer group, first id.
-- Returns {stored value or false, streams that had lost the group, 1 if it was deleted}. A stream that lost a known group
-- begins anew at 0: all that is in it by now came after the loss.
local stored = redis.call('HGET', KEYS[1], ARGV[2])
if not stored and ARGV[1] ~= '1' then return {false, 0, redis.call('ZSCORE', KEYS[2], ARGV[2]) and 1 or 0} end
redis.call('ZREM', KEYS[2], ARGV[2])
local first = ARGV[5]
if stored then first = '0' else redis.call('HSET', KEYS[1], ARGV[2], ARGV[3]) end
local lost = 0
for i = 4, #KEYS do
  local made, wrong = make_group(KEYS[i], ARGV[4], first)
  if wrong then return wrong end
  if made and stored then lost = lost + 1 end
end
local _, wrong = make_group(KEYS[3], ARGV[4], '0')
if wrong then return wrong end
return {stored or ARGV[3], lost, 0}
