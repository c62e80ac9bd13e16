"""The pure algorithm: ``(state, event, now) → commands``. No clock, no randomness, no IO, no tasks.

::

    clients   peers              Engine                     runtime
       |        |                  |                           |
       |--------+-- handle_* ----->|                           |
       |                           |--- take_commands() ------>|  log lane:  SaveVote, Append, Delete…, Purge
       |                           |                           |  network:   SendVote, Replicate, SendHeartbeat…
       |                           |                           |  machine:   Commit, BuildSnapshot, InstallSnapshot
       |                           |<-- on_log_flushed --------|  replies:   Respond, parked until `when` is flushed
       |                           |<-- on_replication_… ------|
       |                           |<-- on_applied ------------|

One door in (``handle_*``, ``on_*``), one door out (commands). The runtime reads through properties and never writes
engine state. What may leave when is written on each handler, beside the line that says ``when``.
"""

from raftkit_core.engine import quorum as _quorum

COMPILED = _quorum.__file__.endswith((".so", ".pyd"))
"""Whether this installation's engine is native code, compiled from the same source (``docs/accelerators.md``)."""
