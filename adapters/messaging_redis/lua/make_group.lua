#!lua flags=allow-oom
-- KEYS: stream. ARGV: consumer group. Makes both, from the beginning, unless they are there.
local reply = redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
if failed(reply) and string.sub(reply.err, 1, 9) ~= 'BUSYGROUP' then return redis.error_reply(reply.err) end
return 1
