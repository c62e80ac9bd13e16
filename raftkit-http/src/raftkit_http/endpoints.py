"""Which nodes a client knows, and in what order it asks them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from raftkit_core.errors import ConfigError
from raftkit_core.network.client import MemberStatus
from raftkit_http.settings import parse_peer_address

MAX_LEARNED = 64
WARM_SECONDS = 1.0
"""How long after its last answer a node is trusted to be there without asking first."""


def normalize(endpoint: str) -> str:
    """``host:port`` or a URL as ``http://host:port``. Raises: ConfigError."""
    return parse_peer_address(endpoint if "://" in endpoint else f"http://{endpoint}").url


class Endpoints:
    """The configured nodes first, then members learned from answers (unless ``fixed``); before them the one that
    answered last, and before all the one that was called the leader."""

    def __init__(self, configured: Sequence[str], *, fixed: bool = False, secret: bool = False) -> None:
        """``secret``: what is sent holds a token, so that no node is learned that would be sent it in plain text."""
        self._fixed = fixed
        self._secret = secret
        self._configured = list(dict.fromkeys(normalize(endpoint) for endpoint in configured))
        if not self._configured:
            raise ConfigError("a client needs at least one endpoint", hint="for example http://127.0.0.1:7401")
        self._learned: list[str] = []
        self.need_tls = any(endpoint.startswith("https:") for endpoint in self._configured)
        for endpoint in self._configured:
            self.checked(endpoint)
        self._preferred: str | None = None
        self._leader: str | None = None
        self._failed: set[str] = set()
        self._answered: dict[str, float] = {}

    def checked(self, address: str) -> str:
        """``address`` as an endpoint. Raises: ConfigError if it is none, or everybody could read a token on its way."""
        endpoint = normalize(address)
        if self._secret and _is_exposed(endpoint):
            raise ConfigError(
                f"the token would travel unencrypted over the network to {endpoint}",
                hint="name the nodes as https://HOST:PORT",
            )
        return endpoint

    def order(self) -> list[str]:
        """Everyone, best first; those that failed last are at the end, not left out."""
        return sorted(
            self._known(),
            key=lambda endpoint: (endpoint in self._failed, endpoint != self._leader, endpoint != self._preferred),
        )

    def answered(self, endpoint: str, now: float) -> None:
        self._preferred = endpoint
        self._failed.discard(endpoint)
        self._answered[endpoint] = now

    def failed(self, endpoint: str) -> None:
        self._failed.add(endpoint)
        if endpoint == self._leader:
            self._leader = None
        self._answered.pop(endpoint, None)

    def is_warm(self, endpoint: str, now: float) -> bool:
        """Whether it answered within the last second."""
        return now - self._answered.get(endpoint, float("-inf")) < WARM_SECONDS

    def prefer(self, address: str) -> None:
        """Ask ``address`` first: a node called it the leader. Anything but an address is ignored."""
        for endpoint in self._addresses([address]):
            if self._fixed and endpoint not in self._configured:
                continue
            self._preferred = self._leader = endpoint
            self._failed.discard(endpoint)
            if endpoint not in self._learned:
                self._learned = [endpoint, *self._learned][:MAX_LEARNED]

    def learn(self, members: Iterable[MemberStatus]) -> None:
        """Replace what was learned by the addresses of ``members``."""
        if self._fixed:
            return
        learned = self._addresses(member.node.client_address for member in members)
        if learned:
            self._learned = learned[:MAX_LEARNED]
            known = set(self._known())
            self._failed &= known
            self._answered = {endpoint: at for endpoint, at in self._answered.items() if endpoint in known}

    def _known(self) -> list[str]:
        # The one that answered last stays known: it may have been reached at another address than it advertises.
        last = [] if self._preferred is None else [self._preferred]
        return list(dict.fromkeys([*self._configured, *self._learned, *last]))

    def _addresses(self, texts: Iterable[str]) -> list[str]:
        found: list[str] = []
        for text in texts:
            try:
                endpoint = normalize(text)
            except ConfigError:
                continue  # another transport's address; the rest may still be reached
            # Whoever asked for TLS is not led out of it, and a token not over a network where all can read it.
            if not ((self.need_tls or self._secret) and _is_exposed(endpoint)):
                found.append(endpoint)
        return found


def _is_exposed(endpoint: str) -> bool:
    address = parse_peer_address(endpoint)
    return address.scheme == "http" and not address.is_loopback
