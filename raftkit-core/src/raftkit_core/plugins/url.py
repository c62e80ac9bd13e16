"""Adapter URLs: how a user names an adapter and its options. Holds no list of adapters: that is the registry's."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_type_hints
from urllib.parse import unquote, urlsplit

from raftkit_core.errors import BadAdapterUrl, UnknownOption

T = TypeVar("T")

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+._-]*)(?=[:?]|\Z)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SECRET_NAME = re.compile(r"(password|passwd|secret|token|api_?key)\Z", re.IGNORECASE)
_USERINFO = re.compile(r"(://[^/?#\s:@]*):[^/?#\s@]*@")
_ANYTHING_BEFORE_AT = re.compile(r"://.*@", re.DOTALL)
_SECRET_OPTION = re.compile(r"((?:password|passwd|secret|token|api_?key)=)[^&]*", re.IGNORECASE)

_SECRET_VALUE = re.compile(r"[?&](?:\w*(?:password|passwd|secret|token|api_?key))=[^&\s]", re.IGNORECASE)

MASK = "***"

EXAMPLES = "memory:  sqlite:///abs/path.db  sqlite:rel.db  redis://host:6379/0?prefix=n1  http://127.0.0.1:7401"


def holds_secret(text: str) -> bool:
    """Whether ``text`` is a URL with a password or a secret option in it, rather than the name of where it is."""
    return _USERINFO.search(text) is not None or _SECRET_VALUE.search(text) is not None


@dataclass(frozen=True, slots=True, repr=False)
class AdapterUrl:
    """A parsed adapter URL.

    ========================================================  =====================================================
    text                                                      meaning
    ========================================================  =====================================================
    ``memory``, ``memory:``                                   scheme alone; a bare name means ``name:``
    ``memory:NAME``                                           path ``NAME``
    ``sqlite:///abs/n1.db``                                   path ``/abs/n1.db`` (three slashes are *absolute*, by the
                                                              RFC; SQLAlchemy reads them as relative)
    ``sqlite:rel/n1.db``                                      path ``rel/n1.db``
    ``redis://user:pw@host:6379/0?prefix=n1``                 host, port, path ``/0``, options, username, password
    ``http://0.0.0.0:7401?advertise=https://n1:7401``         option values are taken as they stand, up to ``&``
    ``import:pkg.module:Attr``                                path ``pkg.module:Attr``
    ========================================================  =====================================================

    ``%XX`` is decoded in path, options and user info; ``+`` is a plus. ``host`` is lower case, without the brackets of
    IPv6. ``text`` is what was written, secrets included; ``repr`` and ``str`` mask them.
    """

    scheme: str
    host: str | None = None
    port: int | None = None
    path: str = ""
    options: Mapping[str, str] = field(default_factory=dict, hash=False)
    text: str = ""
    username: str | None = None
    password: str | None = None

    @classmethod
    def parse(cls, text: str) -> AdapterUrl:
        """Read ``text``.

        Raises:
            BadAdapterUrl: not a URL, a bad port, an option named twice, a ``#`` or a control character.
        """
        if not text or text != text.strip() or _CONTROL.search(text):
            raise BadAdapterUrl(f"not an adapter URL: {_masked(text)!r}", hint=f"write one like: {EXAMPLES}")
        scheme = _SCHEME.match(text)
        if scheme is None:
            raise BadAdapterUrl(
                f"{_masked(text)!r} has no scheme that says which adapter to use", hint=_scheme_hint(text)
            )
        if "#" in text:
            raise BadAdapterUrl(f"{_masked(text)!r} has a '#', which means nothing here", hint="write %23 for a '#'")
        rest = text[scheme.end() :].removeprefix(":")
        try:
            parts = urlsplit("x:" + rest)
            port = parts.port
        except ValueError as error:
            # urllib's message may quote the part that holds a password, so it is not passed on.
            raise BadAdapterUrl(
                f"the host or port of {_masked(text)!r} cannot be read", hint="write HOST:PORT, with a port up to 65535"
            ) from (None if "@" in text else error)
        return cls(
            scheme=scheme[1].lower(),
            host=parts.hostname or None,
            port=port,
            path=unquote(parts.path),
            options=_parse_options(text, parts.query),
            text=text,
            username=None if parts.username is None else unquote(parts.username),
            password=None if parts.password is None else unquote(parts.password),
        )

    def masked(self) -> str:
        """``text`` with passwords and secret options replaced by ``***``: fit for logs and errors."""
        return _SECRET_OPTION.sub(rf"\g<1>{MASK}", _USERINFO.sub(rf"\1:{MASK}@", self.text))

    def __str__(self) -> str:
        return self.masked()

    def __repr__(self) -> str:
        return f"AdapterUrl({self.masked()!r})"

    @property
    def address(self) -> str:
        """``host:port`` as it is written in a URL (brackets around IPv6), without a port if there is none."""
        host = self.host or ""
        shown = f"[{host}]" if ":" in host else host
        return shown if self.port is None else f"{shown}:{self.port}"

    def file_path(self, base: Path | None = None) -> Path:
        """The path as a file; a relative one is under ``base`` (None: the working directory).

        Raises:
            BadAdapterUrl: there is no path, or what should be a path reads as a host (``sqlite://n1.db``).
        """
        if self.host is not None or self.port is not None:
            wanted = f"{self.scheme}:{self.host}{self.path}"
            raise BadAdapterUrl(
                f"{self} names a host ({self.address}), but {self.scheme} needs a file",
                hint=f"write {wanted} for a relative path, {self.scheme}:///abs/path for an absolute one",
            )
        if not self.path or self.path.endswith("/") or "\x00" in self.path:
            raise BadAdapterUrl(
                f"{self} names no file",
                hint=f"write {self.scheme}:n1.db for a relative path, {self.scheme}:///abs/path for an absolute one",
            )
        text = self.path
        if os.name == "nt" and re.match(r"/[A-Za-z]:", text):
            text = text[1:]
        return Path(text) if base is None else base / text

    def options_as(self, options_type: type[T]) -> T:
        """The options as a frozen msgspec Struct or dataclass; see :func:`convert_options`."""
        return convert_options(self, options_type)

    def require_no_options(self) -> None:
        """Raises: UnknownOption if there is any."""
        _check_known(self, ())


def convert_options(url: AdapterUrl, options_type: type[T]) -> T:
    """The url's options as ``options_type``: a msgspec Struct or a dataclass, whose defaults fill what is not given.

    Numbers and ``true``/``false``/``1``/``0`` are read as the field's type says; an option without a value
    (``?insecure``) is True for a bool. Fields named ``*_ms`` take durations (``250ms``, ``5s``), ``*_bytes`` sizes
    (``64MiB``).

    Raises:
        UnknownOption: an option is no field of ``options_type``; the error lists those that are.
        BadAdapterUrl: a value is not of its field's type, or an option without a default is missing.
    """
    import msgspec

    from raftkit_core.types.units import parse_duration_ms, parse_size_bytes

    fields = _fields_of(options_type)
    _check_known(url, tuple(fields))
    values: dict[str, Any] = {}
    for name, text in url.options.items():
        values[name] = text
        try:
            if not text and _takes_bool(fields[name]):
                values[name] = True
            elif name.endswith("_ms"):
                values[name] = parse_duration_ms(text)
            elif name.endswith("_bytes"):
                values[name] = parse_size_bytes(text)
            else:
                msgspec.convert(text, fields[name], strict=False)
        except (ValueError, msgspec.ValidationError) as error:
            given = "" if _SECRET_NAME.search(name) else f" ({name}={text!r})"
            reason = str(error).partition(" - at ")[0].replace("`", "").replace("Expected", "expected")
            raise BadAdapterUrl(f"option {name} of {url}: {reason}{given}", hint=_choices(name, fields[name])) from None
    try:
        return msgspec.convert(values, options_type, strict=False)
    except msgspec.ValidationError as error:
        reason = str(error).replace("Object missing required field", "missing option").replace("`", "'")
        raise BadAdapterUrl(f"{url}: {reason}", hint=f"known options: {_listed(tuple(fields))}") from None


def _fields_of(options_type: type[Any]) -> dict[str, Any]:
    import msgspec

    described = msgspec.inspect.type_info(options_type)
    if not isinstance(described, msgspec.inspect.StructType | msgspec.inspect.DataclassType):
        raise TypeError(f"options must be a msgspec Struct or a dataclass, not {options_type!r}")
    annotations = get_type_hints(options_type)
    return {item.encode_name: annotations[item.name] for item in described.fields}


def _choices(name: str, annotation: Any) -> str | None:
    """What an option may be, where that can be listed."""
    import msgspec

    described = msgspec.inspect.type_info(annotation)
    if isinstance(described, msgspec.inspect.LiteralType):
        return f"write {' or '.join(f'{name}={value}' for value in described.values)}"
    return None


def _takes_bool(annotation: Any) -> bool:
    return annotation is bool or bool in getattr(annotation, "__args__", ())


def _check_known(url: AdapterUrl, known: tuple[str, ...]) -> None:
    for name in url.options:
        if name not in known:
            hint = f"known options: {_listed(known)}" if known else f"{url.scheme} takes no options"
            nearest = did_you_mean(name, known)
            raise UnknownOption(
                f"{url.scheme} has no option {name!r}" + (f"; did you mean {nearest!r}?" if nearest else ""), hint=hint
            )


def did_you_mean(name: str, known: tuple[str, ...] | list[str]) -> str | None:
    """The known name that ``name`` is most likely a slip of, if any is near."""
    from difflib import get_close_matches

    found = get_close_matches(name, known, n=1, cutoff=0.6)
    return found[0] if found else None


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(sorted(names)) or "none"


def _parse_options(text: str, query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for item in query.split("&") if query else ():
        name, _, value = item.partition("=")
        name = unquote(name)
        if not name:
            raise BadAdapterUrl(f"{_masked(text)!r} has an option without a name", hint="write ?name=value&name=value")
        if name in options:
            raise BadAdapterUrl(f"{_masked(text)!r} has option {name!r} twice", hint=f"keep one {name}=")
        options[name] = unquote(value)
    return options


def _masked(text: str) -> str:
    """For text that could not be parsed: rather too much than too little is masked."""
    return _SECRET_OPTION.sub(rf"\g<1>{MASK}", _ANYTHING_BEFORE_AT.sub(f"://{MASK}@", text))


def _scheme_hint(text: str) -> str:
    if re.match(r"\[?[0-9a-fA-F.:]+\]?:\d+\Z", text):
        return f"write http://{text}"
    if "/" in text or "\\" in text or text.startswith("."):
        return "for a file write sqlite:///abs/path.db or sqlite:rel.db"
    return f"write one like: {EXAMPLES}"
