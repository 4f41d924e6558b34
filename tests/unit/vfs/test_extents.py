"""Extents against a set of integers."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from hvbridge.vfs.extents import Extents

END = 40
spans = st.tuples(st.integers(0, END), st.integers(0, END))
steps = st.lists(st.tuples(st.sampled_from(["add", "remove"]), spans), max_size=30)


def built(changes: list[tuple[str, tuple[int, int]]]) -> tuple[Extents, set[int]]:
    extents, model = Extents(), set[int]()
    for change, (start, end) in changes:
        if change == "add":
            extents.add(start, end)
            model |= set(range(start, end))
        else:
            extents.remove(start, end)
            model -= set(range(start, end))
    return extents, model


@given(steps)
def test_covers_what_a_set_would_hold(changes: list[tuple[str, tuple[int, int]]]) -> None:
    extents, model = built(changes)
    assert {at for start, end in extents for at in range(start, end)} == model
    assert extents.total == len(model)


@given(steps)
def test_ranges_are_sorted_joined_and_not_empty(changes: list[tuple[str, tuple[int, int]]]) -> None:
    ranges = list(built(changes)[0])
    assert all(start < end for start, end in ranges)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(ranges))


@given(steps, spans)
def test_answers(changes: list[tuple[str, tuple[int, int]]], span: tuple[int, int]) -> None:
    extents, model = built(changes)
    start, end = span
    wanted = set(range(start, end))
    assert extents.covers(start, end) == (wanted <= model)
    assert {at for s, e in extents.gaps(start, end) for at in range(s, e)} == wanted - model
    run = extents.run(start)
    assert set(range(start, run)) <= model
    assert run not in model
