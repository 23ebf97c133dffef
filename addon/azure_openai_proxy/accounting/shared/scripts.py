"""The Lua scripts. Each runs as one atomic step of the server, by the server's clock.

A counter of requests or tokens is a hash from seconds to amounts; buckets of the last 60 seconds count. A counter of parallel requests is a
hash from the name of a process to its number of places. The places of a process count while it is alive: every process renews its time in
the hash `live` every few seconds, so the places of a killed one are free after `LIVE` seconds.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

__all__ = ["ALL", "BEAT", "CHARGE", "LIVE", "PLACES", "RESERVE", "SETTLE", "Script"]

LIVE = 20
"""Seconds after its last renewal from which a process counts as ended."""


class Script(NamedTuple):
    text: str
    sha: str


def _script(text: str) -> Script:
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


RESERVE = _script(
    f"""
-- KEYS: the hash of processes, then one counter a limit. ARGV: the process, then per limit: w (window) or p (places), the limit, what
-- this request takes. Returns 1 or 0, the refusing limit, its wait in ms, the second, and per limit what is used and ms until it is empty.
local t = redis.call('time')
local now, ms = tonumber(t[1]), math.floor(tonumber(t[2]) / 1000)
local used, reset, wait, short, live = {{}}, {{}}, 0, 0, nil
for i = 1, #KEYS - 1 do
  local key, kind, limit, take = KEYS[i + 1], ARGV[3 * i - 1], tonumber(ARGV[3 * i]), tonumber(ARGV[3 * i + 1])
  local h = redis.call('hgetall', key)
  local sum, needs = 0, 0
  reset[i] = 0
  if kind == 'p' then
    if not live then
      live = {{}}
      local all = redis.call('hgetall', KEYS[1])
      for j = 1, #all, 2 do live[all[j]] = tonumber(all[j + 1]) end
    end
    for j = 1, #h, 2 do
      if h[j] == ARGV[1] or (live[h[j]] or 0) > now - {LIVE} then sum = sum + (tonumber(h[j + 1]) or 0)
      else redis.call('hdel', key, h[j]) end
    end
    if sum + take > limit then needs = 1000 end
  else
    local buckets, newest = {{}}, 0
    for j = 1, #h, 2 do
      local at, amount = tonumber(h[j]) or 0, tonumber(h[j + 1]) or 0
      if at <= now - 60 then redis.call('hdel', key, h[j])
      elseif amount > 0 then
        sum = sum + amount
        buckets[#buckets + 1] = {{at, amount}}
        if at > newest then newest = at end
      end
    end
    if newest > 0 then reset[i] = (newest + 60 - now) * 1000 - ms end
    if sum + take > limit then
      table.sort(buckets, function(a, b) return a[1] < b[1] end)
      local left = sum + take - limit
      needs = 60000
      for _, b in ipairs(buckets) do
        left = left - b[2]
        if left <= 0 then needs = math.min(60000, (b[1] + 60 - now) * 1000 - ms) break end
      end
    end
  end
  used[i] = sum
  if needs > wait then wait, short = needs, i end
end
local reply = {{short == 0 and 1 or 0, short, wait, now}}
if short == 0 then redis.call('hset', KEYS[1], ARGV[1], now) end
for i = 1, #KEYS - 1 do
  local take = tonumber(ARGV[3 * i + 1])
  if short == 0 and take > 0 then
    local place = ARGV[3 * i - 1] == 'p'
    redis.call('hincrby', KEYS[i + 1], place and ARGV[1] or now, take)
    redis.call('expire', KEYS[i + 1], place and 60 or 61)
    used[i] = used[i] + take
    if not place then reset[i] = 60000 - ms end
  end
  reply[#reply + 1] = used[i]
  reply[#reply + 1] = reset[i]
end
return reply
"""
)
SETTLE = _script(
    """
-- KEYS: the counters. ARGV: the process, the second of the reservation, then per limit: w or p, what to give back, what to count now.
local now = redis.call('time')[1]
for i = 1, #KEYS do
  local back, add = tonumber(ARGV[3 * i + 1]), tonumber(ARGV[3 * i + 2])
  local field = ARGV[3 * i] == 'p' and ARGV[1] or ARGV[2]
  if back > 0 and redis.call('hexists', KEYS[i], field) == 1 then
    if redis.call('hincrby', KEYS[i], field, -back) <= 0 then redis.call('hdel', KEYS[i], field) end
  end
  if add > 0 then
    redis.call('hincrby', KEYS[i], ARGV[3 * i] == 'p' and ARGV[1] or now, add)
    redis.call('expire', KEYS[i], 61)
  end
end
"""
)
BEAT = _script(
    f"""
-- KEYS: the hash of processes, then the counters of places in use. ARGV: the process. Returns 1 if the process counted as alive.
local now = tonumber(redis.call('time')[1])
local before = tonumber(redis.call('hget', KEYS[1], ARGV[1]) or 0) or 0
local all = redis.call('hgetall', KEYS[1])
for j = 1, #all, 2 do
  if (tonumber(all[j + 1]) or 0) < now - 3600 then redis.call('hdel', KEYS[1], all[j]) end
end
redis.call('hset', KEYS[1], ARGV[1], now)
redis.call('expire', KEYS[1], 7200)
for i = 2, #KEYS do redis.call('expire', KEYS[i], 60) end
return before > now - {LIVE} and 1 or 0
"""
)
PLACES = _script(
    """
-- KEYS: the hash of processes, then counters of places. ARGV: the process, then per counter its places, which replace the stored ones.
redis.call('hset', KEYS[1], ARGV[1], redis.call('time')[1])
for i = 2, #KEYS do
  if tonumber(ARGV[i]) > 0 then
    redis.call('hset', KEYS[i], ARGV[1], ARGV[i])
    redis.call('expire', KEYS[i], 60)
  else redis.call('hdel', KEYS[i], ARGV[1]) end
end
"""
)
CHARGE = _script(
    """
-- KEYS: per charge the hash of its period. ARGV: per charge the owner, its sum if the hash has none, the charge, the seconds to keep the
-- hash (0: for ever). Returns the sums.
local before, sums = {}, {}
for i = 1, #KEYS do before[i] = tonumber(redis.call('hget', KEYS[i], ARGV[4 * i - 3]) or '') end -- fails before anything is charged
for i = 1, #KEYS do
  local owner, first, usd, keep, sum = ARGV[4 * i - 3], ARGV[4 * i - 2], ARGV[4 * i - 1], ARGV[4 * i], before[i]
  if not sum or sum ~= sum or sum == math.huge or sum < 0 then redis.call('hset', KEYS[i], owner, first) end
  sums[i] = redis.call('hincrbyfloat', KEYS[i], owner, usd)
  if tonumber(keep) > 0 then redis.call('expire', KEYS[i], keep) end
end
return sums
"""
)
ALL = (RESERVE, SETTLE, BEAT, PLACES, CHARGE)
