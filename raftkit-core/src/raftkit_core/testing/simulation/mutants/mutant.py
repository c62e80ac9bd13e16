"""Planted bugs: how one is described, registered, switched on and off again.

A mutant replaces functions of the product (or of a store, a wire, a machine around it) from outside, for as long as
``with applied("its-id"):`` lasts. Nothing in the product asks whether a mutant is on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from raftkit_core.engine import COMPILED
from raftkit_core.errors import ConfigError

PURE_HINT = "install the pure wheel of raftkit-core"
Harm = Literal["safety", "liveness"]
Ring = Literal["engine", "runtime"]


class Patch:
    """Replaces attributes and puts them back, last first."""

    def __init__(self) -> None:
        self._undo: list[tuple[Any, str, Any]] = []

    def set(self, owner: Any, name: str, value: Any) -> Any:
        """Put ``value`` in the place of ``owner.name``; gives what was there.

        Raises: AttributeError if there is nothing: the mutant no longer fits the product.
        """
        before = vars(owner)[name] if isinstance(owner, type) and name in vars(owner) else getattr(owner, name)
        self._undo.append((owner, name, before))
        setattr(owner, name, value)
        return before

    def undo(self) -> None:
        while self._undo:
            owner, name, before = self._undo.pop()
            setattr(owner, name, before)


class Mutant:
    """``what`` says in a sentence what is wrong; ``equivalent``, why nothing can notice (such a one does not count)."""

    def __init__(
        self, id: str, harm: Harm, ring: Ring, what: str, apply: Callable[[Patch], None], equivalent: str = ""
    ) -> None:
        self.id = id
        self.harm = harm
        self.ring = ring
        self.what = what
        self.apply = apply
        self.equivalent = equivalent


MUTANTS: dict[str, Mutant] = {}
"""All of them, by id, in the order they are written down. Filled by importing the modules of this package."""


def mutant(
    id: str, harm: Harm, ring: Ring, what: str, *, equivalent: str = ""
) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    """Register the decorated function as a mutant."""

    def register(apply: Callable[[Patch], None]) -> Callable[[Patch], None]:
        assert id not in MUTANTS, f"two mutants are called {id}"
        MUTANTS[id] = Mutant(id, harm, ring, what, apply, equivalent)
        return apply

    return register


@contextmanager
def applied(id: str) -> Iterator[Mutant]:
    """Switch a mutant on for the duration of the block.

    Raises: KeyError if nothing is called so; ConfigError if the engine is native code, which nobody can patch.
    """
    found = MUTANTS[id]
    if COMPILED:
        raise ConfigError("bugs are planted in the interpreted engine only; this one is native code", hint=PURE_HINT)
    patch = Patch()
    try:
        found.apply(patch)
        yield found
    finally:
        patch.undo()
