"""docs/api.md: its session with curl runs as it is written, and no route is left out."""

from __future__ import annotations

import re

import aiohttp
from curl_session import PAGE, Example, examples, nodes, run, session_in

from raftkit_http.api.openapi import path_of
from raftkit_http.api.routes import routes

NAMES = re.compile(r'"(\w+)":')
EVENT = re.compile(r"^event: (\w+)$", re.MULTILINE)


def differences(example: Example, status: int, text: str) -> list[str]:
    """What the page shows and the node did not say."""
    shown = example.shown
    if not shown.startswith("{"):
        if shown.startswith("id:"):
            return [] if EVENT.findall(shown) == EVENT.findall(text) else [f"events {EVENT.findall(text)}"]
        return [] if text.split("\n")[0] == shown.split("\n")[0] else [f"begins with {text[:80]!r}"]
    head = re.match(r'\{("schema":"[^"]*","ok":(?:true|false))', shown)
    if head is None:
        return []  # the OpenAPI document
    found = [] if text.startswith("{" + head[1]) else [f"the answer is {status} {text[:200]}"]
    return found + [f"there is no {name}" for name in NAMES.findall(shown) if f'"{name}":' not in text]


async def test_the_session_runs_as_it_is_written() -> None:
    session, problems = "", []
    async with nodes() as urls, aiohttp.ClientSession() as http:
        for example in examples(PAGE.read_text()):
            assert example.shown or example.saves, f"{example.command} shows no answer"
            status, text = await run(example, urls, http, session)
            if example.saves:
                assert status == 200, example.command
                continue
            session = session_in(text) or session
            problems += [f"{example.command}: {problem}" for problem in differences(example, status, text.strip())]
    assert problems == []


def test_every_route_has_an_example() -> None:
    typed = {
        (example.method, re.sub(r"^http://[^/]*|\?.*$", "", example.url)) for example in examples(PAGE.read_text())
    }
    missing = []
    for route in routes():
        pattern = re.compile(re.sub(r"\{\w+\}", r"[^?]+", path_of(route)))
        if route.path != "/v1/ws" and not any(
            method == route.method and pattern.fullmatch(path) for method, path in typed
        ):
            missing.append(f"{route.method} {route.path}")
    assert missing == []
