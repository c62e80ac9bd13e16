"""Inputs made wrong on purpose: valid ones with bytes changed, and valid trees with values nobody expects.

Everything is drawn from a seeded ``random.Random``: a target's name and a number give the same input on every machine.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from random import Random
from typing import Any

import msgspec

INTEGERS = (
    -(2**63),
    -(2**31),
    -1,
    0,
    1,
    127,
    128,
    255,
    256,
    2**31 - 1,
    2**31,
    2**53,
    2**53 + 1,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
TEXTS = (
    "",
    "\x00",
    "n1",
    "../../etc/passwd",
    "a" * 5000,
    "\ud7ff",
    "𐍈",
    "\r\nX: y",
    "\x1b[31m",
    "NaN",
    "-0",
    "1e999",
    "٣",
)
RAW = (
    b"",
    b"\x00",
    b"\xff",
    b"\xff" * 8,
    b"\xc1",
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
)
NESTING = (b"\x91" * 600, b"\x91" * 5000, b"\x81\xa1a" * 2000, b"[" * 5000, b'{"a":' * 3000)
SPLICES = (
    b"=",
    b"&",
    b"?",
    b"#",
    b"@",
    b"%",
    b"%00",
    b"%ff",
    b"[",
    b"]",
    b"://",
    b":",
    b'"',
    b"'",
    b"\\",
    b"\n",
    b"\r",
    b"\xed\xa0\x80",
)


def mutated(random: Random, valid: bytes) -> bytes:
    """A few edits of ``valid``: bits, bytes, slices cut, doubled, moved, or replaced by something hostile."""
    data = bytearray(valid)
    for _ in range(random.choice((1, 1, 1, 2, 3, 6))):
        at = random.randrange(len(data) + 1)
        end = min(len(data), at + random.choice((1, 2, 4, 8, 32)))
        kind = random.randrange(9)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << random.randrange(8)
        elif kind == 1 and at < len(data):
            data[at] = random.randrange(256)
        elif kind == 2:
            del data[at:end]
        elif kind == 3:
            data[at:at] = data[at:end]
        elif kind == 4:
            data[at:end] = random.choice(RAW)
        elif kind == 5:
            data[at:at] = random.choice(SPLICES)
        elif kind == 6:
            del data[at:]
        elif kind == 7:
            other = random.randrange(len(data) + 1)
            data[at:end] = data[other : other + 8]
        elif random.randrange(20) == 0:
            data[at:at] = random.choice(NESTING)
    return bytes(data)


def warped(random: Random, tree: Any) -> Any:
    """``tree`` (as MessagePack or JSON give it) with one value somewhere replaced, doubled or taken out."""
    if isinstance(tree, list) and tree and random.randrange(3):
        place = random.randrange(len(tree))
        if random.randrange(5):
            return [*tree[:place], warped(random, tree[place]), *tree[place + 1 :]]
        return random.choice([[*tree[:place], *tree[place + 1 :]], [*tree, tree[place]], tree * 3, tree[::-1]])
    if isinstance(tree, dict) and tree and random.randrange(3):
        key = random.choice(list(tree))
        if random.randrange(5):
            return {**tree, key: warped(random, tree[key])}
        return random.choice([{**tree, "unknown": 1}, {k: v for k, v in tree.items() if k != key}])
    return hostile(random)


def hostile(random: Random) -> Any:
    """A value of any type, likely where no type was thought of."""
    return random.choice(
        (
            None,
            True,
            False,
            1.0,
            math.nan,
            math.inf,
            -0.0,
            b"",
            b"\xff\x00",
            b"x" * 70_000,
            [],
            {},
            [[]],
            [None] * 40,
            {"": None},
            {str(number): number for number in range(40)},
            nested(random.choice((3, 40, 400))),
            random.choice(INTEGERS),
            random.choice(INTEGERS),
            random.choice(TEXTS),
            random.choice(TEXTS),
        )
    )


def nested(depth: int) -> Any:
    tree: Any = 1
    for number in range(depth):
        tree = [tree] if number % 2 else {"a": tree}
    return tree


def packed(random: Random, valid: bytes) -> bytes:
    """``valid`` MessagePack with its tree warped, then sometimes its bytes too."""
    try:
        data = msgspec.msgpack.encode(warped(random, msgspec.msgpack.decode(valid)))
    except (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError):
        return mutated(random, valid)
    return mutated(random, data) if random.randrange(4) == 0 else data


def written(random: Random, valid: bytes) -> bytes:
    """``valid`` JSON with its tree warped, written so that NaN, doubled names and odd numbers are in it too."""
    try:
        text = json.dumps(warped(random, json.loads(valid)), default=lambda value: value.hex())
    except (ValueError, TypeError, RecursionError):
        return mutated(random, valid)
    if random.randrange(6) == 0:
        text = text.replace("}", ', "key": 1, "key": 2}', 1)
    return mutated(random, text.encode("utf-8", "surrogatepass")) if random.randrange(4) == 0 else text.encode()


Maker = Callable[[Random, bytes], bytes]


def made_by(random: Random, structured: Maker | None, valid: bytes) -> bytes:
    if structured is not None and random.randrange(2):
        return structured(random, valid)
    return mutated(random, valid)
