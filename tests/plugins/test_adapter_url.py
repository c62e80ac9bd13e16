"""How adapter URLs are read, shown, and turned into options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkit_core.errors import BadAdapterUrl, UnknownOption
from raftkit_core.plugins import AdapterUrl, convert_options


@pytest.mark.parametrize(
    ("text", "scheme", "host", "port", "path", "options"),
    [
        ("memory", "memory", None, None, "", {}),
        ("memory:", "memory", None, None, "", {}),
        ("memory:NAME", "memory", None, None, "NAME", {}),
        ("sqlite:///abs/path.db", "sqlite", None, None, "/abs/path.db", {}),
        ("sqlite:rel.db", "sqlite", None, None, "rel.db", {}),
        ("sqlite:my%23dir/a b+c.db", "sqlite", None, None, "my#dir/a b+c.db", {}),
        ("redis://host:6379/0?prefix=n1", "redis", "host", 6379, "/0", {"prefix": "n1"}),
        (
            "http://0.0.0.0:7401?advertise=https://n1:7401",
            "http",
            "0.0.0.0",
            7401,
            "",
            {"advertise": "https://n1:7401"},
        ),
        ("http://[::1]:0", "http", "::1", 0, "", {}),
        ("HTTPS://Host", "https", "host", None, "", {}),
        ("import:pkg.module:Attr", "import", None, None, "pkg.module:Attr", {}),
        ("sqlite-kv:///p?cache=1&flag", "sqlite-kv", None, None, "/p", {"cache": "1", "flag": ""}),
        ("kv?limit=3", "kv", None, None, "", {"limit": "3"}),
        ("x:?a=1+2%26", "x", None, None, "", {"a": "1+2&"}),
    ],
)
def test_a_url_is_read_as_documented(
    text: str, scheme: str, host: str | None, port: int | None, path: str, options: dict[str, str]
) -> None:
    assert AdapterUrl.parse(text) == AdapterUrl(scheme, host, port, path, options, text)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "write one like: memory:"),
        (" memory:", "write one like"),
        ("memory:\n", "write one like"),
        ("127.0.0.1:7401", "write http://127.0.0.1:7401"),
        ("[::1]:7401", "write http://[::1]:7401"),
        ("/var/n1.db", "sqlite:///abs/path.db"),
        ("./n1.db", "sqlite:rel.db"),
        ("http://h:70000", "HOST:PORT"),
        ("http://h:port", "HOST:PORT"),
        ("http://[::1", "HOST:PORT"),
        ("sqlite:a#b.db", "write %23"),
        ("x:?a=1&a=2", "keep one a="),
        ("x:?=2", "write ?name=value"),
        ("x:?a=1&", "write ?name=value"),
    ],
)
def test_what_is_no_url_is_refused_with_what_to_write(text: str, part: str) -> None:
    with pytest.raises(BadAdapterUrl) as refused:
        AdapterUrl.parse(text)
    assert part in (refused.value.hint or "")


@given(st.text(max_size=60))
def test_any_text_is_a_url_or_a_typed_error(text: str) -> None:
    try:
        url = AdapterUrl.parse(text)
    except BadAdapterUrl:
        return
    assert url.text == text


def test_passwords_are_masked_wherever_a_url_is_shown() -> None:
    url = AdapterUrl.parse("redis://user:pa%40ss@host:1/0?token=abc&prefix=n1&advertise=http://u:hidden@n1")
    assert (url.username, url.password, url.options["token"]) == ("user", "pa@ss", "abc")
    for shown in (repr(url), str(url), f"{url}", url.masked()):
        assert "redis://user:***@host:1/0?token=***&prefix=n1&advertise=http://u:***@n1" in shown


@pytest.mark.parametrize("text", ["redis://u:hunter2@host:port/", "redis://u:hun#ter2@h", "redis://:hunter2@[::/"])
def test_a_refused_url_does_not_show_its_password(text: str) -> None:
    with pytest.raises(BadAdapterUrl) as refused:
        AdapterUrl.parse(text)
    assert "ter2" not in f"{refused.value} {refused.value.hint} {refused.value.__cause__}"


def test_a_file_path_is_relative_to_the_base_unless_it_is_absolute() -> None:
    assert AdapterUrl.parse("sqlite:a/n1.db").file_path(Path("/data")) == Path("/data/a/n1.db")
    assert AdapterUrl.parse("sqlite:n1.db").file_path() == Path("n1.db")
    assert AdapterUrl.parse("sqlite:///n1.db").file_path(Path("/data")) == Path("/n1.db")


def test_two_slashes_before_a_file_are_explained() -> None:
    with pytest.raises(BadAdapterUrl, match="names a host") as refused:
        AdapterUrl.parse("sqlite://n1.db").file_path()
    assert refused.value.hint is not None
    assert "sqlite:n1.db" in refused.value.hint
    with pytest.raises(BadAdapterUrl, match="names no file"):
        AdapterUrl.parse("sqlite:").file_path()


class StructOptions(msgspec.Struct, frozen=True):
    prefix: str
    database: int = 0
    insecure: bool = False
    timeout_ms: int = 100
    cache_bytes: int | None = None
    durability: Literal["strict", "relaxed"] = "strict"
    token: int | None = None


@dataclass(frozen=True)
class PlainOptions:
    prefix: str = "p"
    insecure: bool | None = None


def test_options_are_converted_to_the_types_of_a_struct() -> None:
    url = AdapterUrl.parse(
        "x:?prefix=7&database=3&insecure&timeout_ms=1.5s&cache_bytes=64MiB&durability=relaxed&token=5"
    )
    assert url.options_as(StructOptions) == StructOptions("7", 3, True, 1500, 64 * 1024 * 1024, "relaxed", 5)


def test_options_are_converted_to_the_types_of_a_dataclass() -> None:
    assert convert_options(AdapterUrl.parse("x:?insecure=false"), PlainOptions) == PlainOptions("p", False)


def test_an_unknown_option_lists_the_known_and_the_nearest() -> None:
    with pytest.raises(UnknownOption, match=r"x has no option 'prefx'; did you mean 'prefix'\?") as refused:
        AdapterUrl.parse("x:?prefx=1").options_as(PlainOptions)
    assert refused.value.hint == "known options: insecure, prefix"


@pytest.mark.parametrize(
    ("query", "part"),
    [
        ("prefix=a&database=x", "option database of .*expected int, got str .*database='x'"),
        ("prefix=a&timeout_ms=soon", "option timeout_ms of .*expected a duration"),
        ("prefix=a&cache_bytes=-1", "option cache_bytes of .*expected a size"),
        ("prefix=a&durability=none", "option durability of .*'none'"),
        ("database=1", "missing option 'prefix'"),
    ],
)
def test_a_wrong_value_names_its_option(query: str, part: str) -> None:
    with pytest.raises(BadAdapterUrl, match=part):
        AdapterUrl.parse(f"x:?{query}").options_as(StructOptions)


def test_a_wrong_secret_is_named_but_not_shown() -> None:
    with pytest.raises(BadAdapterUrl, match="option token") as refused:
        AdapterUrl.parse("x:?prefix=a&token=hunter2").options_as(StructOptions)
    assert "hunter2" not in str(refused.value)


def test_an_adapter_without_options_says_so() -> None:
    AdapterUrl.parse("x:").require_no_options()
    with pytest.raises(UnknownOption) as refused:
        AdapterUrl.parse("x:?a=1").require_no_options()
    assert refused.value.hint == "x takes no options"


def test_a_value_that_is_none_of_the_choices_is_answered_with_them() -> None:
    class Options(msgspec.Struct, frozen=True):
        durability: Literal["full", "relaxed"] = "full"

    with pytest.raises(BadAdapterUrl, match="'ful'") as refused:
        AdapterUrl.parse("sqlite:n1.db?durability=ful").options_as(Options)
    assert refused.value.hint == "write durability=full or durability=relaxed"
