"""Ordered keys behave like a sorted set, whatever was added and removed."""

from __future__ import annotations

from itertools import chain
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkit_core.state_machine import ordered_keys
from raftkit_core.state_machine.ordered_keys import OrderedKeys


@pytest.mark.parametrize("split_count", [2, 3, 7, 2048])
def test_random_changes_match_a_sorted_set(monkeypatch: pytest.MonkeyPatch, split_count: int) -> None:
    monkeypatch.setattr(ordered_keys, "_SPLIT_COUNT", split_count)
    random = Random(split_count)
    model = {str(number) for number in range(50)}
    keys = OrderedKeys(sorted(model))
    given: list[tuple[list[list[str]], list[str]]] = []
    for step in range(5000):
        if step % 250 == 0:
            given.append((keys.parts(), sorted(model)))
        key = str(random.randrange(300))
        if key in model:
            keys.remove(key)
            model.remove(key)
        else:
            keys.add(key)
            model.add(key)
        start = str(random.randrange(300))
        assert list(keys.iterate_from(start)) == sorted(known for known in model if known >= start)
        assert list(keys.iterate_from(start, inclusive=False)) == sorted(known for known in model if known > start)
    assert list(chain.from_iterable(keys.parts())) == sorted(model)
    for parts, as_it_was in given:
        assert list(chain.from_iterable(parts)) == as_it_was


@given(st.sets(st.text()))
def test_the_order_is_that_of_utf8_bytes(texts: set[str]) -> None:
    keys = OrderedKeys()
    for text in texts:
        keys.add(text)
    encoded = [key.encode(errors="surrogatepass") for key in keys.iterate_from("")]
    assert encoded == sorted(encoded)


@pytest.mark.parametrize("content", [[], ["b"], ["a", "c"]])
def test_removing_an_absent_key_is_a_key_error(content: list[str]) -> None:
    keys = OrderedKeys(content)
    with pytest.raises(KeyError):
        keys.remove("absent")
    assert list(keys.iterate_from("")) == content


def test_a_copy_of_the_parts_does_not_change_with_the_set() -> None:
    keys = OrderedKeys(["a"])
    parts = keys.parts()
    keys.add("b")
    assert parts == [["a"]]
