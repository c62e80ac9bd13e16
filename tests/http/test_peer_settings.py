"""What a network URL and a peer address may say, and how wrong ones are refused."""

from __future__ import annotations

import subprocess
import sys

import pytest

from raftkit_core.clock import SystemClock
from raftkit_core.errors import BadAdapterUrl, ConfigError, PluginError, UnknownOption
from raftkit_core.plugins import load_plugins
from raftkit_core.types.adapter import AdapterContext
from raftkit_http.network import HttpNetworkFactory
from raftkit_http.settings import HttpSettings, parse_peer_address


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
        ("https://127.0.0.1:7401", ConfigError, "TLS"),
        ("http://127.0.0.1:7401?advertise=https://n1:7401", ConfigError, "TLS"),
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
        "http://host:port",
    ],
)
def test_an_address_that_could_lead_elsewhere_is_refused(peer: str) -> None:
    with pytest.raises(ConfigError):
        parse_peer_address(peer)
    with pytest.raises(ConfigError):
        HttpNetworkFactory(HttpSettings.parse("http://127.0.0.1:7401")).validate_address(peer)


def test_the_http_network_is_found_by_its_scheme_and_tls_is_refused_with_words() -> None:
    context = AdapterContext("n1", clock=SystemClock())
    loaded = load_plugins()
    factory = loaded.network("http://127.0.0.1:7401", context)
    assert isinstance(factory, HttpNetworkFactory)
    with pytest.raises(ConfigError, match="TLS between peers is not supported yet"):
        loaded.network("https://127.0.0.1:7401", context)


def test_the_plugin_loads_without_aiohttp() -> None:
    code = "import sys, raftkit_http.plugin; print('aiohttp' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert found.stdout.strip() == "False"
