"""The Lua scripts of ``redis-kv``: each changes the state in one atomic step, or not at all.

``KEYS[1]`` is the meta hash, whose claim is that of ``scripts``. Its further fields:

=========== ====================================================================================================
applied     log id of the last applied entry, membership its membership: values of ``codec``, ``""`` for none
membership
applied_at  index of ``applied`` in the clear, -1 for none
generation  which of the generations counts: its cells are in the hash ``data:G``, its keys in the zset ``keys:G``
generations every generation that may be there, separated by commas
=========== ====================================================================================================

A *view* is a moment of one generation. It costs nothing until the first write: each write first keeps what the view
shows of the keys it is about to change, in a hash and a zset of the view's own (``""`` for a key that did not exist).
A reader merges both.
"""

from __future__ import annotations

from raftkit_redis.scripts import FENCE, OWNED, TAKEN, Script

_CHANGE = (
    FENCE
    + """
local seq = string.format('%.0f', tonumber(ARGV[3]) + 1)
if held[4] == seq then return {'OK', seq} end
if held[4] ~= ARGV[3] then return {'SEQ', held[4] or ''} end
local function each(from, to, call)      -- unpack is bound by Lua's stack
  for at = from, to, 1000 do call(unpack(ARGV, at, math.min(at + 999, to))) end
end
local function store(records, removed_from, put_from, last)
  each(removed_from, put_from - 1, function(...) redis.call('HDEL', records, ...) end)
  each(put_from, last, function(...) redis.call('HSET', records, ...) end)
end
"""
)
# A change that is there already answers OK: it was asked for again because its answer was lost.

PEEK = Script(
    "kv-peek",
    """
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'none' and kind ~= 'hash' then return {'KIND', kind} end
if kind == 'none' then
  for i = 2, #KEYS do if redis.call('EXISTS', KEYS[i]) == 1 then return {'ORPHAN', KEYS[i]} end end
  return {'NONE'}
end
local answer = redis.call('HMGET', KEYS[1], 'format', 'owner', 'holder', 'identity', 'applied_at', 'generations')
for i = 1, 6 do if not answer[i] then return {'FOREIGN', kind} end end
table.insert(answer, 1, 'OK')
return answer
""",
)

CLAIM = Script(
    "kv-claim",
    """
-- owner, holder, owner seen, identity seen, format
local owner, identity = unpack(redis.call('HMGET', KEYS[1], 'owner', 'identity'))
if not owner then
  if ARGV[4] ~= '' then return {'CHANGED'} end
  for i = 2, #KEYS do if redis.call('EXISTS', KEYS[i]) == 1 then return {'CHANGED'} end end
  redis.call('HSET', KEYS[1], 'format', ARGV[5], 'owner', '', 'holder', '', 'epoch', '0', 'seq', '0', 'identity', '',
    'applied', '', 'applied_at', '-1', 'membership', '', 'generation', '0', 'generations', '0')
  owner, identity = '', ''
end
"""
    + TAKEN,
)

STATE = Script(
    "kv-state",
    OWNED
    + """
local values = redis.call('HMGET', KEYS[1], 'applied', 'membership', 'generation', 'generations')
for i = 1, 4 do if not values[i] then return {'BROKEN', 'a field of the meta hash is gone'} end end
return {'OK', held[4], values[1], values[2], values[3], values[4], redis.call('HGETALL', KEYS[2])}
""",
)
"""KEYS: meta, records. Records come as a flat list, or as a map where the connection speaks of maps."""

CELLS = Script(
    "kv-cells",
    OWNED
    + """
-- owner, generation, how many whole cells; keys of whole cells, keys of cells whose revision is enough
if redis.call('HGET', KEYS[1], 'generation') ~= ARGV[2] then return {'OK', held[4]} end
local answer, whole = {'OK', held[4], 'HERE'}, tonumber(ARGV[3])
for i = 4, #ARGV do
  local cell = redis.call('HGET', KEYS[2], ARGV[i]) or ''
  if i > whole + 3 then cell = string.sub(cell, 1, 8) end
  answer[#answer + 1] = cell
end
return answer
""",
)
"""KEYS: meta, data. ``""`` for a key that does not exist. Nothing at all if another generation counts by now."""

RANGE = Script(
    "kv-range",
    OWNED
    + """
-- owner, first, last (both as ZRANGEBYLEX takes them), most rows, most bytes, generation or '' for that of a view
if ARGV[6] ~= '' and redis.call('HGET', KEYS[1], 'generation') ~= ARGV[6] then return {'OK', held[4]} end
local function page(keys, data)
  local found = redis.call('ZRANGEBYLEX', keys, ARGV[2], ARGV[3], 'LIMIT', 0, ARGV[4])
  local rows, size, done = {}, 0, #found < tonumber(ARGV[4]) and 1 or 0
  for i, key in ipairs(found) do
    local cell = redis.call('HGET', data, key)
    if not cell then return nil end
    size = size + #key + #cell
    if i > 1 and size > tonumber(ARGV[5]) then done = 0 break end
    rows[#rows + 1] = key
    rows[#rows + 1] = cell
  end
  return rows, done
end
local rows, done = page(KEYS[3], KEYS[2])
if not rows then return {'BROKEN', 'a key has no cell'} end
local kept, kept_done = {}, 1
if KEYS[4] then
  kept, kept_done = page(KEYS[5], KEYS[4])
  if not kept then return {'BROKEN', 'a key of a view has no cell'} end
end
return {'OK', held[4], rows, done, kept, kept_done}
""",
)
"""KEYS: meta, data, keys, and those of a view. From each the first rows of the range, and whether these are all.
Nothing at all if another generation counts by now."""

APPLY = Script(
    "kv-apply",
    _CHANGE
    + """
-- 4 applied, 5 its index, 6 membership, how many: 7 removed keys, 8 cells, 9 removed records; then these, then records
local at = tonumber(redis.call('HGET', KEYS[1], 'applied_at'))
if not at then return {'BROKEN', 'applied_at is gone'} end
if tonumber(ARGV[5]) <= at then return {'BEHIND', string.format('%.0f', at)} end
local first_put = 10 + tonumber(ARGV[7])
local first_record = first_put + 2 * tonumber(ARGV[8])

local function keep(data, keys, key)
  if redis.call('HEXISTS', data, key) == 0 then
    redis.call('HSET', data, key, redis.call('HGET', KEYS[2], key) or '')
    redis.call('ZADD', keys, 0, key)
  end
end
for view = 5, #KEYS, 2 do
  for i = 10, first_put - 1 do keep(KEYS[view], KEYS[view + 1], ARGV[i]) end
  for i = first_put, first_record - 1, 2 do keep(KEYS[view], KEYS[view + 1], ARGV[i]) end
end
each(10, first_put - 1, function(...)
  redis.call('HDEL', KEYS[2], ...)
  redis.call('ZREM', KEYS[3], ...)
end)
each(first_put, first_record - 1, function(...) redis.call('HSET', KEYS[2], ...) end)
for i = first_put, first_record - 1, 2 do redis.call('ZADD', KEYS[3], 0, ARGV[i]) end
store(KEYS[4], first_record, first_record + tonumber(ARGV[9]), #ARGV)
redis.call('HSET', KEYS[1], 'seq', seq, 'applied', ARGV[4], 'applied_at', ARGV[5])
if ARGV[6] ~= '' then redis.call('HSET', KEYS[1], 'membership', ARGV[6]) end
return {'OK', seq}
""",
)
"""KEYS: meta, data, keys, records, then hash and zset of every view of this generation. One batch."""

LOAD = Script(
    "kv-load",
    _CHANGE
    + """
-- 4.. keys and cells
each(4, #ARGV, function(...) redis.call('HSET', KEYS[2], ...) end)
for i = 4, #ARGV, 2 do redis.call('ZADD', KEYS[3], 0, ARGV[i]) end
redis.call('HSET', KEYS[1], 'seq', seq)
return {'OK', seq}
""",
)
"""KEYS: meta, and data and keys of the generation that a restore fills."""

SWITCH = Script(
    "kv-switch",
    _CHANGE
    + """
-- 4 applied, 5 its index, 6 membership, 7 generation, 8.. records
redis.call('DEL', KEYS[2])
store(KEYS[2], 8, 8, #ARGV)
redis.call('HSET', KEYS[1], 'seq', seq, 'applied', ARGV[4], 'applied_at', ARGV[5], 'membership', ARGV[6],
  'generation', ARGV[7])
return {'OK', seq}
""",
)
"""KEYS: meta, records. From now on another generation counts."""

TIDY = Script(
    "kv-tidy",
    _CHANGE
    + """
-- 4 generations
for i = 2, #KEYS do redis.call('UNLINK', KEYS[i]) end
redis.call('HSET', KEYS[1], 'seq', seq, 'generations', ARGV[4])
return {'OK', seq}
""",
)
"""KEYS: meta, then what is to go. Says which generations may be there from now on."""
