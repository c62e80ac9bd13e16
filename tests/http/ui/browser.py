"""A headless Chromium, driven by the W3C WebDriver protocol over plain HTTP: what the tests of ``/ui`` look through."""

from __future__ import annotations

import asyncio
import base64
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--force-color-profile=srgb",
    "--hide-scrollbars",
)


def missing() -> str | None:
    """What must be installed, or None."""
    absent = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    if not absent:
        return None
    return f"{' and '.join(absent)} not found: apt-get install chromium chromium-driver"


class Browser:
    """One window of one browser."""

    def __init__(self, http: aiohttp.ClientSession, session: str) -> None:
        self._http = http
        self._session = session

    async def command(self, method: str, path: str, body: Any = None) -> Any:
        async with self._http.request(method, f"{self._session}{path}", json=body) as response:
            value = (await response.json())["value"]
            assert response.status == 200, value
            return value

    async def open(self, url: str) -> None:
        await self.command("POST", "/url", {"url": url})

    async def run(self, script: str, *arguments: Any) -> Any:
        """``script`` as the body of a function in the page."""
        return await self.command("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    async def text(self, selector: str) -> str:
        found: str = await self.run("return document.querySelector(arguments[0]).innerText", selector)
        return found

    async def until(self, script: str, what: str, seconds: float = 15) -> Any:
        """What ``script`` gives as soon as that is true."""
        for _ in range(int(seconds / 0.05)):
            found = await self.run(script)
            if found:
                return found
            await asyncio.sleep(0.05)
        raise AssertionError(f"{what} did not come; the page says: {await self.text('main')}")

    async def cdp(self, name: str, **parameters: Any) -> Any:
        return await self.command("POST", "/goog/cdp/execute", {"cmd": name, "params": parameters})

    async def size(self, width: int, height: int) -> None:
        await self.cdp(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )

    async def colours(self, scheme: str) -> None:
        """``dark`` or ``light``."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        await self.cdp("Emulation.setEmulatedMedia", features=[feature])

    async def press(self, key: str) -> None:
        """A key on whatever has the focus; ``\\ue004`` is Tab."""
        actions = [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]
        await self.command("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    async def screenshot(self, scale: float = 1.0) -> bytes:
        """The whole page, as PNG."""
        width, height = await self.run("return [window.innerWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": scale}
        shot = await self.cdp("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(shot["data"])

    async def console(self) -> list[str]:
        """Warnings and errors the page caused, refused content included."""
        entries = await self.command("POST", "/se/log", {"type": "browser"})
        return [f"{entry['level']}: {entry['message']}" for entry in entries if entry["level"] != "INFO"]


@asynccontextmanager
async def browser() -> AsyncIterator[Browser]:
    """A fresh browser with a fresh profile, gone at the end."""
    with tempfile.TemporaryDirectory(prefix="raftkit-ui-", ignore_cleanup_errors=True) as profile:
        driver = await asyncio.create_subprocess_exec(
            "chromedriver",
            "--port=0",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={"PATH": "/usr/bin:/bin:/usr/local/bin", "HOME": profile, "TMPDIR": profile},
        )
        try:
            port = await _port(driver)
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as http:
                base = f"http://127.0.0.1:{port}/session"
                options = {"binary": shutil.which("chromium"), "args": [*FLAGS, f"--user-data-dir={profile}/profile"]}
                wanted = {
                    "goog:chromeOptions": options,
                    "goog:loggingPrefs": {"browser": "ALL"},
                    "timeouts": {"script": 20_000, "pageLoad": 20_000},
                }
                async with http.post(base, json={"capabilities": {"alwaysMatch": wanted}}) as response:
                    made = (await response.json())["value"]
                assert "sessionId" in made, made
                page = Browser(http, f"{base}/{made['sessionId']}")
                try:
                    yield page
                finally:
                    await page.command("DELETE", "")
        finally:
            driver.terminate()
            await driver.wait()
            await _settled(driver)


async def _port(driver: asyncio.subprocess.Process) -> int:
    """chromedriver says which port it took."""
    assert driver.stdout is not None
    async with asyncio.timeout(20):
        async for line in driver.stdout:
            text = line.decode(errors="replace")
            if "started successfully on port" in text:
                return int(text.rpartition("port ")[2].strip().rstrip("."))
    raise AssertionError("chromedriver did not start")


async def _settled(driver: asyncio.subprocess.Process) -> None:
    """What is left in its pipe is read, so that the transport closes."""
    assert driver.stdout is not None
    await driver.stdout.read()


def save(shot: bytes, name: str, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(shot)
    return path
