"""raftkit's pytest plugin in a project that has pytest and nothing else."""

from __future__ import annotations

import subprocess
import sys

import pytest

import raftkit_core.testing

pytest_plugins = ["pytester"]

KIT = """
import pytest
from raftkit_core.storage.memory import MemoryDisk, MemoryLogStorage
from raftkit_core.testing import LogStorageConformance

class TestMine(LogStorageConformance):
    def opener(self):
        disk = MemoryDisk()
        return lambda: MemoryLogStorage(disk)
"""


def _run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return pytester.runpytest_inprocess("-p", "no:cacheprovider", "-W", "error", *arguments)


def test_the_cases_of_a_kit_run_without_any_other_plugin(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(KIT)
    outcomes = _run(pytester).parseoutcomes()
    assert outcomes["passed"] > 80
    assert "failed" not in outcomes


def test_a_case_that_fails_quotes_its_clause(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(KIT.replace("return lambda: MemoryLogStorage(disk)", "return lambda: Wrong(disk)") + WRONG)
    result = _run(pytester, "-k", "cancelled_read or test_l4")
    assert result.parseoutcomes()["failed"] >= 1
    result.stdout.fnmatch_lines(["*contract*", "L4: *a hole is refused*"])


WRONG = """
class Wrong(MemoryLogStorage):
    def _check_batch(self, batch):
        pass
"""


def test_replacing_a_case_fails_unless_it_says_why(pytester: pytest.Pytester) -> None:
    replaced = "    async def test_l3_an_empty_batch_changes_nothing(self): {body}\n"
    pytester.makepyfile(KIT + replaced.format(body="pass"))
    result = _run(pytester, "-k", "case_of_the_kit or empty_batch")
    result.assert_outcomes(passed=1, failed=1, deselected=result.parseoutcomes()["deselected"])
    result.stdout.fnmatch_lines(["*test_l3_an_empty_batch_changes_nothing replaces a case of LogBatchCases*"])
    pytester.makepyfile(
        KIT + "    @pytest.mark.xfail(reason='no empty batches')\n" + replaced.format(body="raise ValueError")
    )
    result = _run(pytester, "-k", "case_of_the_kit or empty_batch")
    assert result.parseoutcomes() | {"deselected": 0} == {"passed": 1, "xfailed": 1, "deselected": 0}


def test_async_tests_of_the_project_are_run_only_if_it_says_so(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("async def test_mine():\n    raise ValueError('it ran')\n")
    assert "it ran" not in _run(pytester).stdout.str()
    pytester.makeini("[pytest]\nraftkit_async = true\n")
    result = _run(pytester)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*it ran*"])


def test_the_plugin_imports_nothing_until_a_kit_is_found() -> None:
    program = (
        "import pytest, sys; before = set(sys.modules); import raftkit_core.testing.pytest_plugin;"
        "print(*sorted(set(sys.modules) - before))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert {name for name in found.stdout.split() if "." not in name} <= {"raftkit_core"}
    assert {name for name in found.stdout.split() if name.startswith("raftkit_core.")} == {
        "raftkit_core.testing",
        "raftkit_core.testing.pytest_plugin",
    }


def test_every_public_name_of_testing_resolves() -> None:
    assert raftkit_core.testing.__all__ == sorted(raftkit_core.testing.__all__)
    assert set(raftkit_core.testing.__all__) <= set(dir(raftkit_core.testing))
    for name in raftkit_core.testing.__all__:
        assert getattr(raftkit_core.testing, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        raftkit_core.testing.nonsense  # noqa: B018
