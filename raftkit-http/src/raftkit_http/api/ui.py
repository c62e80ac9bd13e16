"""``/ui``: one page that needs nothing but the node that serves it.

Style and script stand in the page, and its policy names their hashes: nothing else runs, nothing else is loaded, and
the page may talk to this node only. It shows what ``/v1/cluster`` says. Where tokens are asked for, the page asks for
one and keeps it in the tab (``sessionStorage``).
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files

from aiohttp import web

from raftkit_http.api.guard import Call

STYLE_MARK = "/*STYLE*/"
SCRIPT_MARK = "/*SCRIPT*/"


@cache
def page() -> tuple[bytes, str]:
    """The page, and its Content-Security-Policy."""
    folder = files("raftkit_http") / "ui"
    style, script = (folder / "page.css").read_text("utf-8"), (folder / "page.js").read_text("utf-8")
    text = (folder / "page.html").read_text("utf-8").replace(STYLE_MARK, style).replace(SCRIPT_MARK, script)
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; connect-src 'self';"
        " img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text.encode(), policy


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


async def get_ui(call: Call) -> web.Response:
    body, policy = page()
    return web.Response(
        body=body,
        content_type="text/html",
        charset="utf-8",
        headers={
            "Content-Security-Policy": policy,
            "Cache-Control": "no-cache",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Opener-Policy": "same-origin",
        },
    )
