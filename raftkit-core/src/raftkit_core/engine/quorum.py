"""Quorum arithmetic over voter configurations: computed plainly, every time (openraft.md §6 item 1).

Sort per configuration, take the majority-th greatest, take the minimum over configurations. An incremental structure
once granted commits to a minority; a few comparisons per answer are cheaper than that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from raftkit_core.types.log_id import LogId


def quorum_log_id(configs: Sequence[Sequence[str]], matching: Mapping[str, LogId | None]) -> LogId | None:
    """The greatest log id that a quorum of every configuration has reached; None if there is none.

    Voters absent from ``matching`` have reached nothing. Without any configuration nothing is reached.
    """
    lowest: LogId | None = None
    first = True
    for config in configs:
        reached = list(filter(None, map(matching.get, config)))
        majority = len(config) // 2 + 1
        if len(reached) < majority:
            return None
        reached.sort(reverse=True)
        position = reached[majority - 1]
        if first or lowest is None or position < lowest:
            lowest = position
        first = False
    return lowest


def quorum_value(configs: Sequence[Sequence[str]], values: Mapping[str, float], default: float) -> float:
    """The greatest value that a quorum of every configuration has reached; ``default`` stands for absent voters."""
    lowest: float | None = None
    for config in configs:
        reached = sorted((values.get(voter, default) for voter in config), reverse=True)
        position = reached[len(config) // 2]
        if lowest is None or position < lowest:
            lowest = position
    return default if lowest is None else lowest
