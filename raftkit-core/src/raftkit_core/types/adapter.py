"""What an adapter is told when it is made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from raftkit_core.types.ids import DEFAULT_GROUP, NodeId
from raftkit_core.types.security import Security

if TYPE_CHECKING:
    from raftkit_core.clock import Clock


class AdapterContext:
    """Who an adapter is made for. Factories do no IO with it.

    ``data_dir`` is the node's own folder, or None for a node that keeps nothing on disk. ``security`` is for
    transports. ``creates`` is False for a tool that looks at a store: what is not there is not made, ``open`` may raise
    StorageError instead.
    """

    def __init__(
        self,
        node_id: NodeId,
        *,
        clock: Clock,
        cluster: str = "default",
        group: str = DEFAULT_GROUP,
        data_dir: Path | None = None,
        security: Security | None = None,
        creates: bool = True,
    ) -> None:
        self.node_id = node_id
        self.cluster = cluster
        self.group = group
        self.data_dir = data_dir
        self.clock = clock
        self.security = Security() if security is None else security
        self.creates = creates
