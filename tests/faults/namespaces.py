"""A network of its own for every node: namespaces, a bridge between them, and packets that are dropped on the way.

Everything is made inside the project's own namespaces (their names begin with ``rk``), the addresses too; the machine's
own network is not touched, and gone namespaces take their interfaces along. Needs Linux, root, ``ip`` and ``nft``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from types import TracebackType

HUB = "hub"


def why_not() -> str | None:
    """What this machine lacks, in a sentence; None if it has everything."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need Linux and root: run this suite as root"
    if shutil.which("ip") is None:
        return "the command ip is missing: apt-get install iproute2"
    if shutil.which("nft") is None:
        return "the command nft is missing: apt-get install nftables"
    name = f"rk{os.getpid()}try"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        return f"this machine makes no network namespaces: {tried.stderr.strip()}"
    try:
        tried = subprocess.run(
            ["ip", "netns", "exec", name, "nft", "add", "table", "inet", "raftkit"],
            capture_output=True,
            text=True,
            check=False,
        )
        return None if tried.returncode == 0 else f"nft does not work in a namespace here: {tried.stderr.strip()}"
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=False)


class Namespaces:
    """One namespace per name and one for clients, all on one bridge. Made by ``with``, gone after it."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self._prefix = f"rk{os.getpid()}"
        self._addresses = {name: f"10.87.{os.getpid() % 250}.{number}" for number, name in enumerate(names, 1)}

    def address(self, name: str) -> str:
        return self._addresses[name]

    def inside(self, name: str = HUB) -> list[str]:
        """What to put before a command that shall run there."""
        return ["ip", "netns", "exec", self._prefix + name]

    def __enter__(self) -> Namespaces:
        try:
            self._make()
        except BaseException:
            self._delete()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._delete()

    def _make(self) -> None:
        hub = self._prefix + HUB
        _run("ip", "netns", "add", hub)
        _run("ip", "-n", hub, "link", "set", "lo", "up")
        _run("ip", "-n", hub, "link", "add", "bridge0", "type", "bridge")
        _run("ip", "-n", hub, "address", "add", f"10.87.{os.getpid() % 250}.254/24", "dev", "bridge0")
        _run("ip", "-n", hub, "link", "set", "bridge0", "up")
        for name in self.names:
            own = self._prefix + name
            _run("ip", "netns", "add", own)
            _run("ip", "-n", own, "link", "set", "lo", "up")
            _run("ip", "-n", hub, "link", "add", f"to-{name}", "type", "veth", "peer", "name", "eth0", "netns", own)
            _run("ip", "-n", hub, "link", "set", f"to-{name}", "master", "bridge0", "up")
            _run("ip", "-n", own, "address", "add", f"{self.address(name)}/24", "dev", "eth0")
            _run("ip", "-n", own, "link", "set", "eth0", "up")
            self._nft(name, "add table inet raftkit")
            self._nft(name, "add chain inet raftkit in { type filter hook input priority 0; policy accept; }")

    def _delete(self) -> None:
        for name in [*self.names, HUB]:
            subprocess.run(["ip", "netns", "delete", self._prefix + name], stderr=subprocess.DEVNULL, check=False)

    def _nft(self, name: str, rule: str) -> None:
        _run(*self.inside(name), "nft", rule)

    # --- breaking it ------------------------------------------------------------------------------------------------

    def drop(self, source: str, target: str) -> None:
        """No packet of ``source`` reaches ``target``; the other way is open. (TCP needs both, UDP would not.)"""
        self._nft(target, f"add rule inet raftkit in ip saddr {self.address(source)} drop")

    def isolate(self, name: str) -> None:
        """From the other nodes; clients still reach it."""
        for other in self.names:
            if other != name:
                self.drop(name, other)
                self.drop(other, name)

    def lose(self, name: str, percent: int) -> None:
        """So many of the packets that come from other nodes are lost."""
        for other in self.names:
            if other != name:
                self._nft(
                    name,
                    f"add rule inet raftkit in ip saddr {self.address(other)} numgen random mod 100 < {percent} drop",
                )

    def swallow_large(self, name: str) -> None:
        """Packets above 300 bytes vanish on their way to ``name``: a black hole for large messages."""
        for other in self.names:
            if other != name:
                self._nft(name, f"add rule inet raftkit in ip saddr {self.address(other)} meta length > 300 drop")

    def heal(self) -> None:
        for name in self.names:
            self._nft(name, "flush chain inet raftkit in")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
