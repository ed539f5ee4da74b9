"""What a cache does in Redis, each operation one script, so that nothing comes in between.

An entry is a hash: `t` its type, `v` its value, `f` until when it is fresh, `d` when it is dead,
`r` until when it is left in peace after a refresh that failed. Beside it there are a *claim*, the
token of who refreshes it, which lapses by itself, and the *failure* of the last one who did. All
times are those of the server, so that the clocks of workers need not agree.
"""

from __future__ import annotations

# KEYS: the entry, its claim, its failure. ARGV[1]: the time, or '' for the server's.
_BEGIN = """
local now = tonumber(ARGV[1])
if not now then
    local time = redis.call('TIME')
    now = time[1] + time[2] / 1000000
end
local function read()
    local entry = redis.call('HMGET', KEYS[1], 't', 'v', 'f', 'd', 'r')
    if not entry[1] or now >= (tonumber(entry[4]) or math.huge) then return nil end
    local remaining = (tonumber(entry[3]) or math.huge) - now
    return {
        entry[1], entry[2],
        remaining == math.huge and '' or string.format('%.6f', remaining),
        now < (tonumber(entry[5]) or 0) and 1 or 0,
        fresh = remaining > 0,
    }
end
local function write(kind, value, fresh, stale)
    redis.call('DEL', KEYS[1])
    redis.call('HSET', KEYS[1], 't', kind, 'v', value)
    if fresh ~= '' then
        local life = fresh + stale
        redis.call('HSET', KEYS[1], 'f', string.format('%.6f', now + fresh),
            'd', string.format('%.6f', now + life))
        redis.call('PEXPIRE', KEYS[1], string.format('%.0f', math.ceil(life * 1000)))
    end
end
"""

READ = f"""{_BEGIN}
return read()
"""

# ARGV: time, type, value, seconds fresh ('' for ever), seconds stale
WRITE = f"""{_BEGIN}
write(ARGV[2], ARGV[3], ARGV[4], ARGV[5])
redis.call('DEL', KEYS[2], KEYS[3])
"""

DELETE = f"""{_BEGIN}
local entry = read()
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
return entry and entry.fresh and 1 or 0
"""

# ARGV: time, number, seconds fresh
INCR = f"""{_BEGIN}
local entry = read()
redis.call('DEL', KEYS[2], KEYS[3])
if not entry or not entry.fresh then
    write('i', ARGV[2], ARGV[3], 0)
    return ARGV[2]
end
if entry[1] ~= 'i' then return redis.error_reply('NOTANUMBER') end
redis.call('HINCRBY', KEYS[1], 'v', ARGV[2])
return redis.call('HGET', KEYS[1], 'v')
"""

# ARGV: time, token, whom the caller has waited for, milliseconds of a claim
START = f"""{_BEGIN}
local entry = read()
if entry and entry.fresh then return {{'found', entry[1], entry[2]}} end
local holder = redis.call('GET', KEYS[2])
if holder and holder ~= ARGV[2] then return {{'wait', holder}} end
if not holder and ARGV[3] ~= '' then
    local failure = redis.call('HMGET', KEYS[3], 'token', 'error')
    if failure[1] == ARGV[3] then return {{'failed', failure[2]}} end
end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[4])
return {{'lead'}}
"""

# ARGV: time, token, type, value, seconds fresh, seconds stale
FINISH = f"""{_BEGIN}
if redis.call('GET', KEYS[2]) ~= ARGV[2] then return 0 end
write(ARGV[3], ARGV[4], ARGV[5], ARGV[6])
redis.call('DEL', KEYS[2], KEYS[3])
return 1
"""

# ARGV: time, token, error, seconds of rest
FAIL = f"""{_BEGIN}
if redis.call('GET', KEYS[2]) ~= ARGV[2] then return 0 end
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[3], 'token', ARGV[2], 'error', ARGV[3])
redis.call('PEXPIRE', KEYS[3], 10000)
if redis.call('EXISTS', KEYS[1]) == 1 then
    redis.call('HSET', KEYS[1], 'r', string.format('%.6f', now + ARGV[4]))
end
return 1
"""

# KEYS: a claim. ARGV: token, milliseconds; 0 gives the claim up.
CLAIM = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] == '0' then return redis.call('DEL', KEYS[1]) end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""
