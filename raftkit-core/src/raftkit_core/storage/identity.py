"""The check every log storage makes when it is opened: is this the store of the node that opens it?"""

from __future__ import annotations

from raftkit_core.errors import IdentityError
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.identity import STORE_FORMAT, StoreIdentity


def check_store_identity(identity: StoreIdentity | None, context: AdapterContext, location: str) -> None:
    """Refuse the store of another node, group, or a newer format (clause L1). A new store (None) fits anybody.

    Raises: IdentityError.
    """
    if identity is None:
        return
    if identity.format > STORE_FORMAT:
        raise IdentityError(
            f"{location} has store format {identity.format}, this version reads up to {STORE_FORMAT}",
            hint="open it with the newer raftkit that wrote it",
        )
    if identity.node_id != context.node_id:
        raise IdentityError(
            f"{location} belongs to node {identity.node_id}, not to {context.node_id}",
            hint=f"start node {identity.node_id} on it, or give {context.node_id} a place of its own",
        )
    if identity.group != context.group:
        raise IdentityError(
            f"{location} belongs to group {identity.group!r}, not to {context.group!r}",
            hint="give each group a place of its own",
        )
