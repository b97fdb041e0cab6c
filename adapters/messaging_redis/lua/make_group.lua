#!lua flags=allow-oom
-- KEYS: stream. ARGV: consumer group. Makes both, from the beginning, unless they are there.
local _, wrong = make_group(KEYS[1], ARGV[1], '0')
return wrong or 1
