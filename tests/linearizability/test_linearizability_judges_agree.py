"""Independent judges give one answer: brute force on tiny histories, the zone check and the search on larger ones."""

from __future__ import annotations

from random import Random

import pytest
from histories import brute_force, random_history, without_witness

from raftkit_core.testing.linearizability import DurableWrite, check_witness, check_zones, judge, search, settle
from raftkit_core.testing.linearizability.log_order import explains
from raftkit_core.testing.linearizability.zones import can_decide

KINDS = {
    "register": ("put", "get"),
    "deletes": ("put", "get", "delete"),
    "comparisons": ("put", "get", "cas"),
    "everything": ("put", "get", "cas", "delete"),
}


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("values", [0, 2])
def test_the_search_agrees_with_trying_every_order(kinds: str, values: int) -> None:
    answers = {True: 0, False: 0}
    for seed in range(200):
        chance = Random(f"{kinds}/{values}/{seed}")
        history = random_history(chance, chance.randint(2, 6), kinds=KINDS[kinds], values=values, unknown=0.2, lie=0.6)
        expected = brute_force(history)
        findings, _ = search(settle(history))
        assert (not findings) is expected, (seed, [str(o) for o in history], findings)
        answers[expected] += 1
    assert min(answers.values()) >= 10, answers


def test_the_zone_check_agrees_with_trying_every_order() -> None:
    answers = {True: 0, False: 0}
    for seed in range(300):
        chance = Random(seed)
        history = settle(random_history(chance, chance.randint(4, 7), unknown=0.1, lie=0.7))
        assert can_decide(history)
        expected = brute_force(history)
        assert (not check_zones(history)) is expected, (seed, [str(o) for o in history])
        answers[expected] += 1
    assert min(answers.values()) >= 80, answers


def test_the_zone_check_agrees_with_the_search_on_thousands_of_histories() -> None:
    answers = {True: 0, False: 0}
    for seed in range(3000):
        chance = Random(1_000_000 + seed)
        history = settle(
            random_history(chance, chance.randint(5, 24), clients=chance.randint(2, 5), lie=chance.choice([0.05, 0.3]))
        )
        zones = not check_zones(history)
        findings, _ = search(history)
        assert zones is (not findings), (seed, [str(o) for o in history])
        answers[zones] += 1
    assert min(answers.values()) >= 500, answers


@pytest.mark.parametrize("kinds", KINDS)
def test_no_judge_complains_about_what_a_real_register_did(kinds: str) -> None:
    for seed in range(60):
        history = random_history(Random(seed), 120, clients=4, kinds=KINDS[kinds], witness=True)
        assert check_witness(history) == []
        report = judge(history, search_all=True)
        assert report.verdict == "linearizable", (seed, str(report))
        assert judge(without_witness(history)).verdict == "linearizable"


def test_the_witness_check_finds_what_the_search_finds() -> None:
    """A spoilt answer that is no longer linearizable is nearly always named by the cheap check already."""
    illegal = named = 0
    for seed in range(800):
        chance = Random(seed)
        history = random_history(chance, 20, kinds=KINDS["register"], witness=True, lie=0.05)
        findings, _ = search(settle(without_witness(history)))
        witnessed = check_witness(history)
        illegal += bool(findings)
        named += bool(findings) and bool(witnessed)
    assert illegal >= 100
    assert named == illegal


@pytest.mark.parametrize("kinds", KINDS)
def test_the_order_of_the_log_explains_what_a_real_register_did(kinds: str) -> None:
    explained = 0
    for seed in range(100):
        log: list[DurableWrite] = []
        history = random_history(Random(seed), 60, clients=6, kinds=KINDS[kinds], witness=True, unknown=0.3, log=log)
        explained += explains(settle(history, log), log)
    # A delete of unknown outcome may be taken for another one; everything else is told apart.
    assert explained == 100 or ("delete" in KINDS[kinds] and explained >= 90)


@pytest.mark.parametrize("kinds", KINDS)
def test_what_the_order_of_the_log_explains_the_search_finds_nothing_wrong_with(kinds: str) -> None:
    answers = {True: 0, False: 0}
    for seed in range(400):
        log: list[DurableWrite] = []
        chance = Random(f"log {kinds} {seed}")
        history = random_history(chance, chance.randint(3, 16), kinds=KINDS[kinds], witness=True, lie=0.2, log=log)
        settled = settle(history, log)
        is_explained = explains(settled, log)
        answers[is_explained] += 1
        if is_explained:
            assert search(settled)[0] == [], (seed, [str(o) for o in settled])
            assert judge(history, durable=log, search_all=True).decided_by.get("search", 0) == 0
    assert min(answers.values()) >= 50, answers
