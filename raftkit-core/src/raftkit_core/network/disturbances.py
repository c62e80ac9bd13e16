"""What can go wrong between the nodes of a hub: messages are lost, refused, delayed, looked at and counted (openraft's
test router)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from raftkit_core.errors import Unreachable
from raftkit_core.network.wire import Kind, decode_frame, decode_request, kind_of, request_kind
from raftkit_core.types.ids import NodeId

KIND_NAMES = {int(kind): kind.name.lower() for kind in Kind}

"""What a hook is told and ``counts`` has: kinds in lower case."""

DROP = "drop"
"""Answer of a pre-hook: the message vanishes."""

PreHook = Callable[[NodeId, NodeId, str, Any], float | str | None]
"""``(src, dst, kind, message)`` for every request, ``kind`` as in ``Kind``, lower case. Gives None to let it pass,
seconds to delay it and what follows on its lane, or :data:`DROP`; an ``RPCError`` it raises is what the caller gets."""

PostHook = Callable[[NodeId, NodeId, str], str | None]
"""``(src, dst, kind)`` of the request that was answered. Gives None to let the answer pass, or :data:`DROP`."""


class Disturbances:
    """Who does not hear whom, and who judges messages.

    ``counts`` counts requests by kind, hellos included. ``latency`` is added to every message, in seconds.
    """

    def __init__(self) -> None:
        self._pre_hook: PreHook | None = None
        self._post_hook: PostHook | None = None
        self._latency = 0.0
        self.counts: Counter[str] = Counter()
        self._cuts: dict[tuple[NodeId, NodeId], bool] = {}
        self._isolated: dict[NodeId, bool] = {}
        self.is_undisturbed = True
        """Whether every message passes, and at once."""

    def cut(self, src: NodeId, dst: NodeId, *, silent: bool = True) -> None:
        """Lose what ``src`` sends to ``dst``: requests and answers. Not silent: a request fails at once."""
        self._cuts[(src, dst)] = silent
        self._changed()

    def isolate(self, node_id: NodeId, *, silent: bool = True) -> None:
        """Lose everything from and to ``node_id``."""
        self._isolated[node_id] = silent
        self._changed()

    def partition(self, *sides: set[NodeId], silent: bool = True) -> None:
        """Lose what goes from one side to another."""
        for side in sides:
            for other in sides:
                if other is not side:
                    for src in sorted(side):
                        for dst in sorted(other):
                            self.cut(src, dst, silent=silent)

    def heal(self, node_id: NodeId | None = None) -> None:
        """Undo every cut and isolation, or those ``node_id`` takes part in."""
        if node_id is None:
            self._cuts.clear()
            self._isolated.clear()
        else:
            self._isolated.pop(node_id, None)
            self._cuts = {pair: silent for pair, silent in self._cuts.items() if node_id not in pair}
        self._changed()

    def fault(self, src: NodeId, dst: NodeId) -> str | None:
        """What happens to a message: None (it passes), ``silent`` or ``refused``."""
        if not self._cuts and not self._isolated:
            return None
        silent = self._cuts.get((src, dst))
        if silent is None and src != dst:
            silent = self._isolated.get(src, self._isolated.get(dst))
        return None if silent is None else "silent" if silent else "refused"

    @property
    def pre_hook(self) -> PreHook | None:
        """Judges requests."""
        return self._pre_hook

    @pre_hook.setter
    def pre_hook(self, hook: PreHook | None) -> None:
        self._pre_hook = hook
        self._changed()

    @property
    def post_hook(self) -> PostHook | None:
        """Judges answers to requests that were sent since it was set."""
        return self._post_hook

    @post_hook.setter
    def post_hook(self, hook: PostHook | None) -> None:
        self._post_hook = hook
        self._changed()

    @property
    def latency(self) -> float:
        return self._latency

    @latency.setter
    def latency(self, seconds: float) -> None:
        self._latency = seconds
        self._changed()

    def _changed(self) -> None:
        self.is_undisturbed = not (
            self._cuts or self._isolated or self._latency or self._pre_hook is not None or self._post_hook is not None
        )

    def judge(self, src: NodeId, dst: NodeId, frame: bytes) -> float | str | None:
        """Seconds of delay for a request, or :data:`DROP`. Raises: RPCError for the caller."""
        kind = request_kind(kind_of(frame))
        name = KIND_NAMES[int(kind)]
        self.counts[name] += 1
        fault = self.fault(src, dst)
        if fault == "refused":
            raise Unreachable(f"{dst} cannot be reached from {src}")
        delay: float | str | None = None
        if self.pre_hook is not None:
            delay = self.pre_hook(src, dst, name, decode_request(kind, decode_frame(frame).body))
        if fault == "silent" or delay == DROP:
            return DROP
        return delay
