"""One kind of error for everything that bytes can be wrong in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

DECODE_ERRORS = (ValueError, RecursionError, OverflowError, MemoryError)
"""Everything that a decoder of msgspec raises for bytes that are wrong: text that is no UTF-8, deep nesting, absurd
sizes among it."""


def strictly(decode: Callable[[Any], T]) -> Callable[[Any], T]:
    """``decode`` of a msgspec decoder, raising nothing but ``msgspec.DecodeError``.

    msgspec itself lets others out: text that is no UTF-8, deep nesting, absurd sizes.
    """

    def decoded(data: Any) -> T:
        try:
            return decode(data)
        except msgspec.DecodeError:
            raise
        except DECODE_ERRORS as error:
            raise msgspec.DecodeError(f"{type(error).__name__}: {error}") from None

    return decoded
