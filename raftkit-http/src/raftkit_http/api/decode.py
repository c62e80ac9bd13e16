"""From what a stranger sent to typed values: bounded before buffered, strict before believed.

Whatever is wrong is a ``BadRequest`` (or ``RequestTooLarge``) whose message says where.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, NoReturn, TypeVar
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec
from aiohttp import web

from raftkit_core.config import ReadPolicy
from raftkit_core.errors import BadRequest, RequestTooLarge
from raftkit_core.types.ids import is_node_id
from raftkit_http.api.schema import MAX_LIST_KEYS, MAX_SAFE_INT

T = TypeVar("T")

MAX_DEPTH = 32
"""Nesting of arrays and objects in a body."""

MAX_PARAMETERS = 32
"""In a query."""

BODY_SECONDS = 20.0
"""For the whole body, whatever deadline the caller asked for: a slow sender holds memory."""

_MESSAGE_LIMIT = 300


class UnsupportedBody(BadRequest):
    """The body is of a type or encoding this route does not take (HTTP 415)."""


class BodyTooSlow(BadRequest):
    """The body did not arrive in time (HTTP 408)."""


async def read_body(request: web.Request, limit_bytes: int) -> bytes:
    """The body, refused as soon as it is known to be larger than ``limit_bytes``, announced or not.

    Raises: RequestTooLarge, BodyTooSlow, UnsupportedBody (compressed: a small one could unpack to gigabytes).
    """
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise UnsupportedBody("a compressed body is not accepted", hint="send it without Content-Encoding")
    if request.content_length is not None and request.content_length > limit_bytes:
        raise _too_large(limit_bytes)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.content.iter_chunked(64 * 1024):
                size += len(chunk)
                if size > limit_bytes:
                    raise _too_large(limit_bytes)
                chunks.append(chunk)
    except TimeoutError:
        raise BodyTooSlow(f"the body did not arrive within {BODY_SECONDS:g} s") from None
    return b"".join(chunks)


def _too_large(limit_bytes: int) -> RequestTooLarge:
    return RequestTooLarge(
        f"the body is larger than the {limit_bytes} bytes this route takes",
        hint="send less, or raise max_entry_bytes in the nodes' configuration",
    )


def require_type(request: web.Request, *allowed: str) -> str:
    """The body's media type. Raises: UnsupportedBody unless it is ``allowed``.

    Browsers send forms and plain text across origins without asking; these types they do not.
    """
    given = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if given not in allowed:
        raise UnsupportedBody(
            f"Content-Type is {quoted(given)}, this route takes {' or '.join(allowed)}",
            hint=f"add -H 'Content-Type: {allowed[0]}'",
        )
    return given


def decode_json(body: bytes, into: type[T]) -> T:
    """Strictly ``into``. Raises: BadRequest."""
    try:
        value = msgspec.json.decode(body, type=into, strict=True)
        # msgspec keeps the last of two equal names, another parser the first: what was checked would not be what ran.
        document = json.loads(body, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadRequest(
            f"the JSON body is not valid: {clean(str(error))}", hint="GET /openapi.json describes what each route takes"
        ) from error
    check_depth(document)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("an object names a field twice")
    return result


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def check_depth(document: Any) -> None:
    """Raises: BadRequest if nested deeper than :data:`MAX_DEPTH`. A loop, so that depth costs no stack."""
    level = [document]
    for _ in range(MAX_DEPTH + 1):
        level = [
            child
            for item in level
            if isinstance(item, dict | list | tuple)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return
    raise BadRequest(f"the body is nested deeper than {MAX_DEPTH} levels")


class Query:
    """The query string: every name known, each at most once."""

    def __init__(self, request: web.Request, *known: str) -> None:
        self._values: dict[str, str] = {}
        allowed = {*known, "timeout_ms"}
        for name, value in _pairs(request.rel_url.raw_query_string):
            if name not in allowed:
                raise BadRequest(
                    f"unknown query parameter {quoted(name)}", hint=f"known here: {', '.join(sorted(allowed))}"
                )
            if name in self._values:
                raise BadRequest(f"query parameter {name} is given twice")
            self._values[name] = value

    def text(self, name: str) -> str | None:
        return self._values.get(name)

    def integer(self, name: str, *, minimum: int, maximum: int) -> int | None:
        """Decimal digits only: no sign, no spaces, no underscore, no other script's digits."""
        text = self._values.get(name)
        if text is None:
            return None
        value = int(text) if text.isascii() and text.isdecimal() and len(text) <= 16 else -1
        if not minimum <= value <= maximum:
            raise BadRequest(f"{name} must be an integer from {minimum} to {maximum}, not {quoted(text)}")
        return value

    def flag(self, name: str) -> bool:
        text = self._values.get(name, "0")
        if text not in ("0", "1", "true", "false"):
            raise BadRequest(f"{name} must be 1 or 0, not {quoted(text)}")
        return text in ("1", "true")

    def revision(self) -> int | None:
        return self.integer("if_revision", minimum=0, maximum=MAX_SAFE_INT - 1)

    def limit(self) -> int:
        return self.integer("limit", minimum=1, maximum=MAX_LIST_KEYS) or MAX_LIST_KEYS

    def consistency(self) -> ReadPolicy:
        text = self._values.get("consistency", ReadPolicy.READ_INDEX.value)
        try:
            return ReadPolicy(text)
        except ValueError:
            known = ", ".join(policy.value for policy in ReadPolicy)
            raise BadRequest(f"consistency must be one of {known}, not {quoted(text)}") from None


def _pairs(query: str) -> list[tuple[str, str]]:
    """Read here, because aiohttp leaves what is not UTF-8 as it stands: ``%FF`` would be the text "%FF"."""
    try:
        return parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=MAX_PARAMETERS)
    except UnicodeDecodeError as error:
        raise BadRequest("the query is not UTF-8", hint="percent-encode its UTF-8 bytes") from error
    except ValueError as error:
        raise BadRequest(f"the query has more than {MAX_PARAMETERS} parameters") from error


def one_header(request: web.Request, name: str) -> str | None:
    """Raises: BadRequest if it is given twice: who reads the first and who reads the last would not do the same."""
    values = request.headers.getall(name, ())
    if len(values) > 1:
        raise BadRequest(f"{name} is given twice", hint="send it once")
    return values[0] if values else None


def precondition(request: web.Request, query: Query) -> int | None:
    """The revision a key must be at (0: absent): ``If-Match: "17"``, ``If-None-Match: *``, or ``?if_revision=17``.

    Raises: BadRequest for more than one of them, or another form.
    """
    given: list[int] = []
    match = one_header(request, "If-Match")
    if match is not None:
        digits = match.strip()
        digits = digits[1:-1] if len(digits) > 2 and digits[0] == digits[-1] == '"' else digits
        if not (digits.isascii() and digits.isdecimal() and len(digits) <= 16 and int(digits) < MAX_SAFE_INT):
            raise BadRequest(f"If-Match is a revision, not {quoted(match)}", hint="take the ETag of a GET")
        given.append(int(digits))
    absent = one_header(request, "If-None-Match")
    if absent is not None:
        if absent.strip() != "*":
            raise BadRequest("If-None-Match may only be *: the key must not exist")
        given.append(0)
    revision = query.revision()
    if revision is not None:
        given.append(revision)
    if len(given) > 1:
        raise BadRequest("give one precondition: If-Match, If-None-Match or if_revision")
    return given[0] if given else None


def has_precondition_header(request: web.Request) -> bool:
    return "If-Match" in request.headers or "If-None-Match" in request.headers


def key_in_path(request: web.Request, *, before: str = "") -> str:
    """The key in ``/v1/kv/{key}``, percent-decoded once, slashes allowed; or in ``/v1/kv/{key}/before``. Raises:
    BadRequest if it is not UTF-8.

    Taken from the raw path, because aiohttp leaves an invalid escape as it stands: ``%FF`` would name the key "%FF".
    It is what stands there that counts, not how: ``/v1/%6bv/a`` is routed here, too.
    """
    raw = request.rel_url.raw_path.split("/", 3)[3]
    if before:
        raw, _, last = raw.rpartition("/")
        assert unquote_to_bytes(last).decode() == before, "the route says so"
    try:
        return unquote_to_bytes(raw).decode()
    except UnicodeDecodeError as error:
        raise BadRequest("the key in the path is not UTF-8", hint="percent-encode its UTF-8 bytes") from error


def node_id_in_path(request: web.Request) -> str:
    node_id = request.match_info["id"]
    if not is_node_id(node_id):
        raise BadRequest(f"{quoted(node_id)} is not a node id", hint="use 1 to 63 of [A-Za-z0-9._-]")
    return node_id


def clean(text: str) -> str:
    """Without control characters and not long: fit for a log line and a terminal."""
    text = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    return text if len(text) <= _MESSAGE_LIMIT else text[:_MESSAGE_LIMIT] + "…"


def quoted(text: str) -> str:
    return f"'{clean(text[:64])}'"
