"""The Lua scripts: each changes the store in one atomic step, or not at all.

``KEYS[1]`` is the meta hash, ``KEYS[2]`` the log list; both share one hash slot. Fields of meta:

========== =====================================================================================================
format     version of this layout
owner      random id of the handle that holds the store, ``""`` when nobody does
holder     JSON about that handle, for people and for the check whether it is dead
epoch      grows with every claim and every reconnect: what an older connection still sends is refused
seq        grows by one with every change: how a lost write, and the fate of an unanswered one, are told
identity vote committed purged
           values of ``codec``; ``""`` is "none yet", an absent field is damage
term       of the vote, in the clear, so that a lower one is refused
commit_at  index of ``committed`` in the clear, -1 for none
first next index of the list's first element, and of the one that would come after its last
========== =====================================================================================================

Every script checks before it writes: Redis runs a script alone and writes its effects to the append-only file as one
transaction, so a crash leaves all of it or nothing. Numbers are formatted with ``%.0f``: Lua prints large ones as
1e+15.

Answers are lists whose first element is a status: ``OK``, ``NONE`` (no such store), ``KIND`` and ``FOREIGN`` (the keys
are somebody else's), ``FENCED`` (somebody else holds the store; the holder), ``GONE`` (the hash is not there any more),
``SEQ`` (not the sequence expected; the one found), ``DAMAGED``, ``GAP``, ``TERM``, ``HELD``, ``CHANGED``, ``ABSENT``.
"""

from __future__ import annotations

import hashlib


class Script:
    """A Lua source and the name Redis knows it by after ``SCRIPT LOAD`` or the first ``EVAL``."""

    __slots__ = ("name", "sha", "source")

    def __init__(self, name: str, source: str) -> None:
        self.name = name
        self.source = source.strip().encode()
        self.sha = hashlib.sha1(self.source, usedforsecurity=False).hexdigest()


FENCE = """
local held = redis.call('HMGET', KEYS[1], 'owner', 'epoch', 'holder', 'seq', 'first', 'next')
if not held[1] then return {'GONE'} end
if held[1] ~= ARGV[1] or held[2] ~= ARGV[2] then return {'FENCED', held[3] or ''} end
"""

OWNED = """
local held = redis.call('HMGET', KEYS[1], 'owner', 'epoch', 'holder', 'seq', 'first', 'next')
if not held[1] then return {'GONE'} end
if held[1] ~= ARGV[1] then return {'FENCED', held[3] or ''} end
"""
# Reads compare the owner alone: they run beside a write that may be renewing the epoch. So does the release, whose own
# claim may have lost its answer.

_SHAPE = """
local first, next = tonumber(held[5]), tonumber(held[6])
local length = redis.call('LLEN', KEYS[2])
if not first or not next or length ~= next - first then
  return {'DAMAGED', tostring(held[5]), tostring(held[6]), string.format('%.0f', length)}
end
"""

PEEK = Script(
    "peek",
    """
local kinds = {redis.call('TYPE', KEYS[1]).ok, redis.call('TYPE', KEYS[2]).ok}
if (kinds[1] ~= 'none' and kinds[1] ~= 'hash') or (kinds[2] ~= 'none' and kinds[2] ~= 'list') then
  return {'KIND', kinds[1], kinds[2]}
end
if kinds[1] == 'none' then return {'NONE', kinds[2]} end
local answer = redis.call('HMGET', KEYS[1], 'format', 'owner', 'holder', 'seq', 'identity', 'vote', 'purged', 'next')
for i = 1, 8 do if not answer[i] then return {'FOREIGN', kinds[1], kinds[2]} end end
table.insert(answer, 1, 'OK')
answer[10] = redis.call('LINDEX', KEYS[2], -1) or ''
return answer
""",
)
"""Looks at a store without touching it."""

# The end of a claim of a store, the log's or a machine's.
TAKEN = """
if owner ~= ARGV[3] then return {'HELD', redis.call('HGET', KEYS[1], 'holder')} end
if identity ~= ARGV[4] then return {'CHANGED'} end
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'holder', ARGV[2])
local epoch = redis.call('HINCRBY', KEYS[1], 'epoch', 1)
return {'OK', string.format('%.0f', epoch), redis.call('HGET', KEYS[1], 'seq')}
"""

CLAIM = Script(
    "claim",
    """
-- owner, holder, owner seen, identity seen, format
local owner, identity = unpack(redis.call('HMGET', KEYS[1], 'owner', 'identity'))
if not owner then
  if ARGV[4] ~= '' or redis.call('EXISTS', KEYS[2]) == 1 then return {'CHANGED'} end
  redis.call('HSET', KEYS[1], 'format', ARGV[5], 'owner', '', 'holder', '', 'epoch', '0', 'seq', '0', 'identity', '',
    'vote', '', 'term', '0', 'committed', '', 'commit_at', '-1', 'purged', '', 'first', '0', 'next', '0')
  owner, identity = '', ''
end
"""
    + TAKEN,
)
"""Takes the store from exactly the owner seen (``""``: from nobody). Gives epoch and seq."""

RENEW = Script(
    "renew",
    """
-- owner. Only the owner is compared: an earlier renewal may have lost its answer.
local held = redis.call('HMGET', KEYS[1], 'owner', 'holder', 'seq')
if not held[1] then return {'GONE'} end
if held[1] ~= ARGV[1] then return {'FENCED', held[2] or ''} end
return {'OK', string.format('%.0f', redis.call('HINCRBY', KEYS[1], 'epoch', 1)), held[3]}
""",
)
"""After a reconnect: raises the epoch, so that nothing sent on the old connection can still run. Gives epoch, seq."""

RELEASE = Script(
    "release",
    OWNED
    + """
redis.call('HSET', KEYS[1], 'owner', '', 'holder', '')
return {'OK'}
""",
)

IDENTITY = Script(
    "identity",
    FENCE
    + """
-- seq, identity
if held[4] == string.format('%.0f', tonumber(ARGV[3]) + 1) then return {'OK', held[4]} end
if held[4] ~= ARGV[3] then return {'SEQ', held[4] or ''} end
local seq = string.format('%.0f', tonumber(ARGV[3]) + 1)
redis.call('HSET', KEYS[1], 'identity', ARGV[4], 'seq', seq)
return {'OK', seq}
""",
)

STATE = Script(
    "state",
    OWNED
    + _SHAPE
    + """
local values = redis.call('HMGET', KEYS[1], 'vote', 'committed', 'purged')
for i = 1, 3 do if not values[i] then return {'DAMAGED', '', '', ''} end end
return {'OK', held[4], values[1], values[2], values[3], held[5], held[6], redis.call('LINDEX', KEYS[2], -1) or ''}
""",
)

READ = Script(
    "read",
    OWNED
    + _SHAPE
    + """
-- start, stop, bytes
local start, stop, budget = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
if start < first or start >= next then return {'ABSENT', held[4], held[5], held[6]} end
if stop > next then stop = next end
local answer, size, at = {'OK', held[4]}, 0, start
while at < stop do
  local upto = math.min(at + 64, stop) - 1
  for _, entry in ipairs(redis.call('LRANGE', KEYS[2], at - first, upto - first)) do
    size = size + #entry
    if size > budget and #answer > 2 then return answer end
    answer[#answer + 1] = entry
  end
  at = upto + 1
end
return answer
""",
)
"""Whole entries from ``start``, at least one, cut before the one that would pass ``bytes``."""

WRITE = Script(
    "write",
    FENCE
    + """
-- 3 seq, 4 vote, 5 term, 6 truncate since, 7 purge index, 8 purged, 9 committed, 10 its index,
-- 11 index of the first entry, 12.. entries
if held[4] == string.format('%.0f', tonumber(ARGV[3]) + 1) then
  return {'OK', held[4], redis.call('LINDEX', KEYS[2], -1) or ''}
end
if held[4] ~= ARGV[3] then return {'SEQ', held[4] or ''} end
"""
    + _SHAPE
    + """
local meta = redis.call('HMGET', KEYS[1], 'term', 'commit_at')
if ARGV[4] ~= '' and tonumber(ARGV[5]) < tonumber(meta[1]) then return {'TERM', meta[1]} end

local start, stop = first, next           -- what of the old list stays: [start, stop)
if ARGV[6] ~= '' then
  stop = math.max(math.min(stop, tonumber(ARGV[6])), start)
end
local purges = ARGV[7] ~= '' and tonumber(ARGV[7]) >= first
if purges then
  start = tonumber(ARGV[7]) + 1
  stop = math.max(stop, start)
end
local entries = #ARGV - 11
if entries > 0 and tonumber(ARGV[11]) ~= stop then return {'GAP', string.format('%.0f', stop)} end

-- From here on only writes, and each of them can be done: the first refuses for the whole script or nothing does.
local fields = {'seq', string.format('%.0f', tonumber(ARGV[3]) + 1), 'first', string.format('%.0f', start),
  'next', string.format('%.0f', stop + entries)}
local function set(name, value) fields[#fields + 1] = name; fields[#fields + 1] = value end
if ARGV[4] ~= '' then set('vote', ARGV[4]); set('term', ARGV[5]) end
if purges then set('purged', ARGV[8]) end
local commit_at = tonumber(meta[2])
if ARGV[9] ~= '' and tonumber(ARGV[10]) < stop + entries then
  commit_at = tonumber(ARGV[10])
  set('committed', ARGV[9]); set('commit_at', ARGV[10])
end
-- Committed may lag or be lost, but it is never ahead of the log.
if commit_at >= stop + entries then set('committed', ''); set('commit_at', '-1') end
redis.call('HSET', KEYS[1], unpack(fields))

if start >= next or stop <= first then
  redis.call('DEL', KEYS[2])
elseif start > first or stop < next then
  redis.call('LTRIM', KEYS[2], start - first, stop - 1 - first)
end
for i = 12, #ARGV, 1000 do               -- unpack is bound by Lua's stack
  redis.call('RPUSH', KEYS[2], unpack(ARGV, i, math.min(i + 999, #ARGV)))
end
local last = ''
if ARGV[6] ~= '' and entries == 0 then last = redis.call('LINDEX', KEYS[2], -1) or '' end
return {'OK', fields[2], last}
""",
)
"""One ``LogBatch``. Gives seq and, after a bare truncate or for a repeated batch, the last entry left."""
