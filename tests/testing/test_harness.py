"""The hook in ``tests/conftest.py`` runs async tests and fails them on what they leave behind."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest_plugins = ["pytester"]

CONFTEST = Path(__file__).parent.parent / "conftest.py"


async def test_an_async_test_runs_in_a_loop(tmp_path: Path) -> None:
    assert asyncio.get_running_loop().is_running()
    assert tmp_path.name


@given(st.integers())
async def test_an_async_property_test_runs_its_examples(number: int) -> None:
    await asyncio.sleep(0)
    assert isinstance(number, int)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("assert False, 'reached'", "*reached*"),
        ("globals()['t'] = asyncio.ensure_future(asyncio.sleep(60))", "*leaked task*"),
        ("asyncio.get_running_loop().call_soon(lambda: 1 / 0); await asyncio.sleep(0)", "*ZeroDivisionError*"),
        (
            "async def bad(): raise KeyError('lost')\n    asyncio.ensure_future(bad()); await asyncio.sleep(0.01)",
            "*never retrieved*",
        ),
    ],
)
def test_what_an_async_test_leaves_behind_fails_it(pytester: pytest.Pytester, body: str, expected: str) -> None:
    pytester.makeconftest(CONFTEST.read_text())
    pytester.makepyfile(f"import asyncio\nasync def test_it():\n    {body}\n")
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([expected])
