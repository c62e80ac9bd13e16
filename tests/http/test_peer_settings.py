"""What a network URL and a peer address may say, and how wrong ones are refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from raftkit_core.clock import SystemClock
from raftkit_core.errors import BadAdapterUrl, ConfigError, PluginError, UnknownOption, Unreachable
from raftkit_core.plugins import load_plugins
from raftkit_core.testing.recording_service import RecordingService
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.membership import Node
from raftkit_core.types.security import Security
from raftkit_http.network import HttpNetworkFactory
from raftkit_http.settings import HttpSettings


def test_loopback_needs_nothing_and_advertises_itself() -> None:
    factory = HttpNetworkFactory(HttpSettings.parse("http://127.0.0.1:7401"))
    assert factory.advertised().peer == "http://127.0.0.1:7401"
    assert HttpSettings.parse("http://[::1]:7401").listen.url == "http://[::1]:7401"
    assert HttpSettings.parse("http://localhost:7401").listen.host == "localhost"


def test_advertise_is_what_others_use() -> None:
    settings = HttpSettings.parse("http://0.0.0.0:7401?advertise=http://n1.example:7401&insecure=true")
    assert HttpNetworkFactory(settings).advertised().peer == "http://n1.example:7401"


def test_an_unknown_port_cannot_be_advertised() -> None:
    with pytest.raises(ConfigError, match="not known before"):
        HttpNetworkFactory(HttpSettings.parse("http://127.0.0.1:0")).advertised()


@pytest.mark.parametrize(
    ("url", "error", "words"),
    [
        ("http://10.0.0.1:7401", ConfigError, "without TLS"),
        ("http://0.0.0.0:7401?insecure=true", ConfigError, "no address another member could use"),
        ("http://127.0.0.1:7401?advertise=http://0.0.0.0:7401", ConfigError, "no address another member"),
        ("https://127.0.0.1:7401", ConfigError, "needs ca, cert, key"),
        ("http://127.0.0.1:7401?clients=https://127.0.0.1:7402", ConfigError, "needs cert, key"),
        ("http://127.0.0.1:7401?advertise=https://n1:7401", ConfigError, "one has TLS"),
        ("http://127.0.0.1:7401?clients=http://10.0.0.1:7402", ConfigError, "without TLS"),
        ("http://127.0.0.1:7401?clients=http://0.0.0.0:7402&insecure=true", ConfigError, "no address another member"),
        ("http://127.0.0.1:7401?advertise_clients=http://n1:7402", ConfigError, "no meaning without clients"),
        ("http://127.0.0.1:7401?snapshot_rate=1KiB", ConfigError, "1024 bytes a second"),
        ("http://127.0.0.1:7401?snapshot_rate=fast", BadAdapterUrl, "snapshot_rate"),
        ("http://127.0.0.1:7401?colour=red", UnknownOption, "no option 'colour'"),
        ("http://127.0.0.1:7401?insecure=maybe", BadAdapterUrl, "true or false"),
        ("http://127.0.0.1:7401?insecure=true&insecure=true", BadAdapterUrl, "twice"),
        ("http://127.0.0.1:7401?insecure", BadAdapterUrl, "cannot be read"),
        ("http://127.0.0.1", BadAdapterUrl, "needs a host and a port"),
        ("http://127.0.0.1:99999", BadAdapterUrl, "cannot be read"),
        ("http://127.0.0.1:7401/path", BadAdapterUrl, "more than a host and a port"),
    ],
)
def test_a_wrong_network_url_says_what_is_wrong(url: str, error: type[PluginError], words: str) -> None:
    with pytest.raises(error, match=words):
        HttpSettings.parse(url)


@pytest.mark.parametrize(
    "peer",
    [
        "",
        "n2",
        "file:///etc/passwd",
        "unix:/run/x",
        "http://user:pw@host:1",
        "http://host:1/path",
        "http://host:1?x=y",
        "http://host:1#f",
        "http://host",
        "http://host:0",
        "http://host:1\r\nX: y",
        "http://ho st:1",
        "http://[::1:1",
        "https://host:1",
        "http://169.254.169.254:80",
        "http://[::ffff:169.254.169.254]:80",
        "http://[fe80::1]:80",
        "http://224.0.0.1:80",
        "http://0.0.0.0:80",
        "gopher://host:1",
        "http://host:port",
    ],
)
def test_an_address_that_could_lead_elsewhere_is_refused(peer: str) -> None:
    with pytest.raises(ConfigError):
        HttpNetworkFactory(HttpSettings.parse("http://127.0.0.1:7401")).validate_address(peer)


def test_members_can_be_kept_within_networks() -> None:
    inside = Security(peer_networks=("10.0.0.0/8", "fd00::/8"))
    factory = HttpNetworkFactory(HttpSettings.parse("http://127.0.0.1:7401", inside))
    for peer in ("http://10.1.2.3:1", "http://[fd00::1]:1", "http://n2.example:1"):
        factory.validate_address(peer)
    for peer in ("http://127.0.0.1:1", "http://11.0.0.1:1", "http://[fe80::1]:1"):
        with pytest.raises(ConfigError, match="may not be used"):
            factory.validate_address(peer)
    with pytest.raises(ConfigError, match="peer_networks"):
        HttpSettings.parse("http://127.0.0.1:7401", Security(peer_networks=("10.0.0.1/8",)))


async def test_a_name_that_leads_to_a_forbidden_address_is_not_called() -> None:
    factory = HttpNetworkFactory(HttpSettings.parse("http://127.0.0.1:0", Security(peer_networks=("10.0.0.0/8",))))
    net = factory.connect("n2", Node("http://localhost:1"), RecordingService("n1"))
    try:
        with pytest.raises(Unreachable, match="no address that a member may have"):
            await net.hello(3)
    finally:
        await factory.close()


def test_beyond_this_machine_tls_and_tokens_are_needed_or_the_word_insecure(tmp_path: Path) -> None:
    files = Security(ca=tmp_path / "ca", cert=tmp_path / "crt", key=tmp_path / "key")
    with pytest.raises(ConfigError, match="without TLS"):
        HttpSettings.parse("http://192.0.2.1:7401", Security(tokens=tmp_path / "tokens"))
    with pytest.raises(ConfigError, match="without tokens"):
        HttpSettings.parse("https://192.0.2.1:7401", files)
    with pytest.raises(ConfigError, match="without tokens"):
        HttpSettings.parse("https://192.0.2.1:7401?clients=https://192.0.2.1:7402", files)
    with pytest.raises(ConfigError, match="without TLS"):
        HttpSettings.parse("https://192.0.2.1:7401?clients=http://192.0.2.1:7402", files)
    HttpSettings.parse("https://192.0.2.1:7401?clients=http://127.0.0.1:7402", files)
    HttpSettings.parse("https://192.0.2.1:7401", msgspec.structs.replace(files, tokens=tmp_path / "tokens"))
    HttpSettings.parse("http://192.0.2.1:7401?insecure=true")
    HttpSettings.parse("http://192.0.2.1:7401", Security(insecure=True))


def test_the_http_network_is_found_by_its_scheme() -> None:
    context = AdapterContext("n1", clock=SystemClock())
    loaded = load_plugins()
    factory = loaded.network("http://127.0.0.1:7401", context)
    assert isinstance(factory, HttpNetworkFactory)
    with pytest.raises(ConfigError, match="needs ca, cert, key"):
        loaded.network("https://127.0.0.1:7401", context)


def test_the_plugin_loads_without_aiohttp() -> None:
    code = "import sys, raftkit_http.plugin; print('aiohttp' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
