#!lua flags=allow-oom
-- KEYS: retry stream. ARGV: consumer group, ids. What is acknowledged there is deleted with it, so that nobody counts
-- it as waiting: not between the two, and not for ever where the connection breaks there.
redis.call('XACK', KEYS[1], unpack(ARGV))
redis.call('XDEL', KEYS[1], unpack(ARGV, 2))
return 1
