"""Values are compared as they are stored, without the order that sets and dicts do not have."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple

import pytest
from frozendict import frozendict

from onegov_ormcache.tiers.comparison import Likeness, compare
from onegov_ormcache.tiers.serializer import Serializer


class Point(NamedTuple):
    """A record whose values have an order."""

    x: Any
    y: Any


@dataclass(frozen=True)
class Names:
    """A record with a set."""

    names: frozenset[int]
    first: int = 0


SERIALIZER = Serializer((Point, Names))

#: Equal sets that Python does not write in the same order.
ONE, OTHER = {0, 8}, {8, 0}
NAN = float('nan')

EQUAL = [
    ({'a': 1, 'b': [NAN]}, {'b': [NAN], 'a': 1}),
    (ONE, OTHER),
    (frozendict(a=1, b=2), frozendict(b=2, a=1)),
    ([{1: {'x': ONE}, 2: ()}], [{2: (), 1: {'x': OTHER}}]),
    (Names(frozenset([0, 8])), Names(frozenset([8, 0]))),
    ([Point(ONE, {'a': 1, 'b': 2})], [Point(OTHER, {'b': 2, 'a': 1})]),
]

REORDERED = [
    ([1, 2], [2, 1]),
    (((1, 'a'), (2, 'b')), ((2, 'b'), (1, 'a'))),
    ({'a': [Point(1, 2), Point(3, 4)]}, {'a': [Point(3, 4), Point(1, 2)]}),
]

DIFFERENT = [
    (1, True), (1, 1.0), ('1', 1), ([1], (1,)), ({1}, frozenset({1})), (0.0, -0.0),
    (Decimal('1.0'), Decimal('1.00')), ([1, 1, 2], [1, 2, 2]), ({'a': 1}, {'a': 2}),
    ({'a': 1, 'b': 2}, {'a': 2, 'b': 1}), (Point(1, 2), Point(2, 1)), (Point(1, 2), (1, 2)),
    (Names(frozenset(), 1), Names(frozenset(), 2)), (['ab', 'c'], ['a', 'bc']), ([], [[]]),
    ({'a': 1}, {}), (None, 0),
]  # fmt: skip


def likeness(one: Any, other: Any) -> Likeness:
    """Return how alike two values are."""
    return compare(SERIALIZER, SERIALIZER.encode(one).data, SERIALIZER.encode(other).data)


@pytest.mark.parametrize(('one', 'other'), EQUAL)
def test_equal(one: Any, other: Any) -> None:
    """Sets and dicts have no order, at any depth."""
    assert likeness(one, other) is Likeness.EQUAL
    assert likeness(other, one) is Likeness.EQUAL
    assert SERIALIZER.encode(one) != SERIALIZER.encode(other)


@pytest.mark.parametrize(('one', 'other'), REORDERED)
def test_reordered(one: Any, other: Any) -> None:
    """Lists and tuples have one, at any depth, which is told apart."""
    assert likeness(one, other) is Likeness.REORDERED


@pytest.mark.parametrize(('one', 'other'), DIFFERENT)
def test_different(one: Any, other: Any) -> None:
    """Values of different types are different, also if Python takes them for equal."""
    assert likeness(one, other) is Likeness.DIFFERENT
    assert likeness(one, one) is Likeness.EQUAL
