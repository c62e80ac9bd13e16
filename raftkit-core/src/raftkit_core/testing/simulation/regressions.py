"""Seeds that once failed, and why: they are run with every change, whatever range of fresh seeds it gets.

What a seed draws changes with the plan of its ring. An entry from before such a change is one more fixed seed then, not
the scenario that failed; what must be remembered for good is a test or a planted bug besides.
"""

from __future__ import annotations

import msgspec


class Regression(msgspec.Struct, frozen=True):
    ring: str
    seed: int
    why: str
    profile: str = "mixed"
    seconds: float = 15.0


REGRESSIONS = (
    Regression("engine", 646, "an oracle wanted of a leader that won late what a greater one had committed"),
    Regression("engine", 1331, "an oracle took a grant for early that a leader of the same term had overtaken"),
    Regression("runtime", 68, "a wiped voter that nobody could reach kept the others from a leader", seconds=30.0),
    Regression("runtime", 329027, "a leader that was just removed took a write and never learned of it", seconds=60.0),
    Regression("runtime", 329067, "a node was down when everybody was to hold the same", seconds=60.0),
    Regression("runtime", 37, "a crash left a snapshot ahead of its leader's vote", profile="staged", seconds=10.0),
    Regression("runtime", 43, "a build met a snapshot under installation and took it for its own", seconds=60.0),
    Regression("runtime", 49, "an oracle wanted a quorum that a lost store had been part of", seconds=10.0),
    Regression("runtime", 4, "frames that come several at a time", profile="bursts", seconds=10.0),
    Regression(
        "runtime", 7750031, "a heartbeat left a failed node when its hello was answered", "bursts", seconds=10.0
    ),
    Regression("runtime", 7752027, "a start that was called off left a node neither up nor down", seconds=10.0),
    Regression("runtime", 24, "an oracle did not know that a leader tells of an earlier term's commit", seconds=10.0),
)
