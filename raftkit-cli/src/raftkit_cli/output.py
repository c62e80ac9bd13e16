"""What is printed: one JSON document or plain text on stdout, everything else on stderr.

Rich is imported only where a terminal shows a table; a pipe gets the same columns as plain text.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TextIO

import click

from raftkit_cli.failures import Failure


class Output:
    """Where a verb puts its results, as the global options and the environment want it."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False, verbose: int = 0, color: str = "auto") -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.verbose = verbose
        self.color = color

    # --- results ------------------------------------------------------------------------------------------------

    def result(self, verb: str, data: Any, human: Callable[[], None] | None = None) -> None:
        """The one result: ``data`` under ``raftkit.<verb>/1`` with ``--json``, else whatever ``human`` prints."""
        if self.as_json:
            self.document({"schema": f"raftkit.{verb}/1", "ok": True, "data": data})
        elif human is not None:
            human()

    def streamed(self, verb: str, data: Any, human: Callable[[], None]) -> None:
        """One of many results, as it comes: with ``--json`` a document on one line, whoever reads it."""
        if self.as_json:
            import json

            click.echo(json.dumps({"schema": f"raftkit.{verb}/1", "ok": True, "data": data}))
        else:
            human()
        sys.stdout.flush()

    def document(self, document: dict[str, Any]) -> None:
        """A JSON document on one line; indented where a person reads it."""
        import json

        text = json.dumps(document, indent=2 if is_terminal(sys.stdout) else None)
        click.echo(text)

    def failure(self, verb: str, failure: Failure) -> None:
        """What happened and why, then what to type next. With ``--json`` on stdout, else on stderr."""
        if self.as_json:
            document: dict[str, Any] = {"schema": f"raftkit.{verb}/1", "ok": False, "error": failure.as_error()}
            if failure.data is not None:
                document["data"] = failure.data
            self.document(document)
            return
        label = self.style("Error:", "red", sys.stderr)
        self._echo(f"{label} {failure.message}", sys.stderr)
        if failure.hint:
            self._echo(f"Try:   {failure.hint}   [{failure.code}]", sys.stderr)
        else:
            self._echo(f"       [{failure.code}]", sys.stderr)

    def line(self, text: str = "") -> None:
        """A line of the human result."""
        self._echo(text, sys.stdout)

    def _echo(self, text: str, stream: TextIO) -> None:
        # click would strip colours from a pipe even where FORCE_COLOR or --color always asks for them.
        click.echo(text, file=stream, color=self.is_coloured(stream))

    # --- notes --------------------------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """Progress or a remark, on stderr; nothing with ``-q``."""
        if not self.quiet:
            self._echo(text, sys.stderr)

    def warn(self, text: str) -> None:
        """A remark that matters, on stderr, also with ``-q``."""
        self._echo(f"{self.style('Warning:', 'yellow', sys.stderr)} {text}", sys.stderr)

    # --- looks --------------------------------------------------------------------------------------------------

    def is_coloured(self, stream: TextIO) -> bool:
        """``--color``, then NO_COLOR, FORCE_COLOR and TERM=dumb, then whether a person is looking."""
        if self.color != "auto":
            return self.color == "always"
        if os.environ.get("NO_COLOR"):
            return False
        if os.environ.get("FORCE_COLOR"):
            return True
        return is_terminal(stream) and os.environ.get("TERM") != "dumb"

    def style(self, text: str, colour: str, stream: TextIO | None = None) -> str:
        """``text`` in ``colour``, or as it is. A colour never carries meaning alone."""
        return click.style(text, fg=colour, bold=True) if self.is_coloured(stream or sys.stdout) else text

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table on stdout: rich on a terminal, aligned plain columns elsewhere."""
        if not is_terminal(sys.stdout) or not self.is_coloured(sys.stdout):
            for text in plain_table(headers, rows):
                self.line(text)
            return
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for header in headers:
            table.add_column(header, no_wrap=True)
        for row in rows:
            table.add_row(*(Text.from_ansi(cell) for cell in row))
        Console().print(table)


def plain_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns two spaces apart, as wide as their widest cell, nothing at the end of a line."""
    everything = [list(headers), *(list(row) for row in rows)]
    widths = [max(len(click.unstyle(row[column])) for row in everything) for column in range(len(headers))]
    lines = []
    for row in everything:
        cells = (cell + " " * (width - len(click.unstyle(cell))) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join(cells).rstrip())
    return lines


def is_terminal(stream: TextIO) -> bool:
    """Whether a person looks at ``stream``."""
    try:
        return stream.isatty()
    except ValueError:  # closed already
        return False


def human_bytes(count: int) -> str:
    """``96 KiB``; ``-`` for nothing."""
    if count <= 0:
        return "-"
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 10 else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def human_ms(milliseconds: int | float | None) -> str:
    """``41 ms``, ``2.4 s``, ``3 min``; ``-`` for None."""
    if milliseconds is None:
        return "-"
    if milliseconds < 1000:
        return f"{milliseconds:.0f} ms"
    if milliseconds < 120_000:
        return f"{milliseconds / 1000:.1f} s"
    return f"{milliseconds / 60_000:.0f} min"


def bytes_fields(value: bytes) -> dict[str, str]:
    """``{"value": text}`` where the bytes are UTF-8, else ``{"value_b64": …}``."""
    try:
        return {"value": value.decode("utf-8")}
    except UnicodeDecodeError:
        import base64

        return {"value_b64": base64.b64encode(value).decode("ascii")}
