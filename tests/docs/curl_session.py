"""Runs the ``curl`` lines of docs/api.md in this process, against real nodes on free ports.

uv run python tests/docs/curl_session.py    # prints every answer, to write the page by
"""

from __future__ import annotations

import asyncio
import re
import shlex
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
from yarl import URL

from raftkit_core import open_raft
from raftkit_core.testing.ports import free_urls

PAGE = Path(__file__).resolve().parents[2] / "docs" / "api.md"
BLOCK = re.compile(r"^```console\n(.*?)^```", re.DOTALL | re.MULTILINE)
NODES = {"n1": 7401, "n4": 7404}
"""What the page's addresses stand for."""
STREAM_EVENTS = 3


class Example:
    """A command as it is typed, and the answer the page shows."""

    def __init__(self, command: str, shown: str) -> None:
        self.command = command
        self.shown = shown
        words = shlex.split(command.replace("$SESSION", "{SESSION}"))
        assert words[0] == "curl", command
        self.method: str | None = None
        self.saves = False
        self.headers: dict[str, str] = {}
        self.body: bytes | None = None
        url = ""
        at = 1
        while at < len(words):
            word = words[at]
            if word in ("-s", "-N", "-i"):
                at += 1
                continue
            if word in ("-X", "-d", "-H", "-o", "--data-binary"):
                value = words[at + 1]
                if word == "-o":
                    self.saves = True
                elif word == "-X":
                    self.method = value
                elif word == "-H":
                    name, _, text = value.partition(":")
                    self.headers[name] = text.strip()
                else:
                    self.body = value.encode()
                at += 2
                continue
            assert not word.startswith("-"), f"this test knows no {word}"
            url = word
            at += 1
        self.url = url
        self.method = self.method or ("GET" if self.body is None else "POST")


def examples(text: str) -> list[Example]:
    """The curl lines of every console block, with what is shown below each; a backslash continues a line."""
    found: list[Example] = []
    for block in BLOCK.findall(text):
        for part in re.split(r"^\$ ", block.replace("\\\n", " "), flags=re.MULTILINE):
            command, _, shown = part.partition("\n")
            if command.startswith("curl "):
                found.append(Example(command, shown.strip()))
    return found


@asynccontextmanager
async def nodes() -> AsyncIterator[dict[int, str]]:
    """The nodes of the page, pristine; gives the real address for each port of the page."""
    async with AsyncExitStack() as stack:
        urls: dict[int, str] = {}
        for node_id, port in NODES.items():
            (urls[port],) = free_urls(1)
            await stack.enter_async_context(open_raft(node_id, storage="memory:", network=urls[port]))
        yield urls


async def run(example: Example, urls: dict[int, str], http: aiohttp.ClientSession, session: str) -> tuple[int, str]:
    """Status and text of the answer; of a stream, the first events."""

    def real(text: str) -> str:
        for port, url in urls.items():
            text = text.replace(f"http://127.0.0.1:{port}", url)
        return text.replace("{SESSION}", session)

    headers = {name: real(value) for name, value in example.headers.items()}
    if example.body is not None:
        headers.setdefault("Content-Type", "application/x-www-form-urlencoded")
    body = None if example.body is None else real(example.body.decode()).encode()
    url = URL(real(example.url), encoded=True)
    async with http.request(example.method or "GET", url, headers=headers, data=body) as response:
        if example.saves:
            return response.status, f"{len(await response.read())} bytes"
        if response.content_type != "text/event-stream":
            return response.status, await response.text()
        text = ""
        while text.count("\n\n") < STREAM_EVENTS:
            text += (await response.content.readany()).decode()
        return response.status, "\n\n".join(text.split("\n\n")[:STREAM_EVENTS])


def session_in(text: str) -> str | None:
    found = re.search(r'"session":"([0-9a-f-]+)"', text)
    return None if found is None else found[1]


async def show() -> None:
    async with nodes() as urls, aiohttp.ClientSession() as http:
        session = ""
        for example in examples(PAGE.read_text()):
            status, text = await run(example, urls, http, session)
            session = session_in(text) or session
            for port, url in urls.items():
                text = text.replace(url, f"http://127.0.0.1:{port}")
            print(f"$ {example.command}\n[{status}] {text.strip()[:700]}\n")


if __name__ == "__main__":
    asyncio.run(show())
