"""Durations and sizes as people write them: ``250ms``, ``5s``, ``2m``, ``64MiB``."""

from __future__ import annotations

import re

_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*\Z", re.ASCII)

MILLISECONDS = {"ms": 1, "s": 1000, "m": 60_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}

BYTES = {
    "b": 1,
    "kib": 1024,
    "mib": 1024**2,
    "gib": 1024**3,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
}
"""Binary and decimal units mean what they say; letter case does not matter."""


def parse_duration_ms(text: str | int) -> int:
    """Whole milliseconds of ``250ms``, ``1.5s``, ``2m``, ``1h``; an integer (or its digits) is milliseconds already.

    Raises:
        ValueError: no duration, negative, or not a whole number of milliseconds.
    """
    return _parse(text, MILLISECONDS, "a duration like 250ms, 5s or 2m, or an integer of milliseconds")


def parse_size_bytes(text: str | int) -> int:
    """Whole bytes of ``64MiB``, ``1.5GiB``, ``500kB``; an integer (or its digits) is bytes already.

    Raises:
        ValueError: no size, negative, or not a whole number of bytes.
    """
    return _parse(text, BYTES, "a size like 512KiB or 64MiB, or an integer of bytes")


def _parse(text: object, units: dict[str, int], expected: str) -> int:
    if isinstance(text, int) and not isinstance(text, bool) and text >= 0:
        return text
    if isinstance(text, str):
        if text.isascii() and text.isdigit():
            return int(text)
        match = _QUANTITY.match(text)
        unit = None if match is None else units.get(match[2].lower())
        if match is not None and unit is not None:
            whole, _, fraction = match[1].partition(".")
            scale: int = 10 ** len(fraction)
            value: int
            value, rest = divmod(int(whole + fraction) * unit, scale)  # exact: floats lose the last byte of a GiB
            if rest == 0:
                return value
    raise ValueError(f"expected {expected}, got {text!r}")
