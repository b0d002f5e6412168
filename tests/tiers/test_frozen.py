"""Frozen values: nothing that a request can change is left in them, at any depth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
from frozendict import frozendict
from psycopg.types.multirange import Multirange
from psycopg.types.range import Range as PsycopgRange
from sqlalchemy.dialects.postgresql import MultiRange, Range

from onegov_ormcache.errors import ValueNotCacheable
from onegov_ormcache.tiers.frozen import freeze
from tests.tiers.serializable import rows


class Pair(NamedTuple):
    """Two of anything."""

    left: Any
    right: Any


@dataclass(frozen=True)
class Holder:
    """Holds anything, and can't be changed itself."""

    held: Any


@dataclass
class Changeable:
    """Can be changed."""

    held: Any


def row(held: Any) -> Any:
    """A row with one column."""
    return rows((held,), keys=('held',))[0]


@pytest.mark.parametrize(
    ('value', 'frozen'),
    [
        ([1, [2]], (1, (2,))),
        ({'a': {1}}, frozendict({'a': frozenset({1})})),
        (Pair([1], {2: [3]}), Pair((1,), frozendict({2: (3,)}))),
        (Pair([Holder(1)], row('x')), Pair((Holder(1),), row('x'))),
        ({1: MultiRange([Range(1, 2)])}, frozendict({1: (Range(1, 2),)})),
        (Multirange([PsycopgRange(1, 2)]), (PsycopgRange(1, 2),)),
    ],
    ids=['list', 'dict', 'named tuple', 'records', 'multirange', "psycopg's multirange"],
)
def test_parts_become_immutable(value: Any, frozen: Any) -> None:
    """Lists, dicts and sets become their immutable forms, wherever they are."""
    found = freeze(value, 'users')
    assert found == frozen
    assert type(found) is type(frozen)
    hash(found)


def mapping(held: Any) -> Any:
    """The mapping of a row with one column."""
    return row(held)._mapping


def psycopg_range(held: Any) -> Any:
    """A range of psycopg with one bound."""
    return PsycopgRange(held)


RECORDS = [Holder, row, mapping, Range, psycopg_range]
IMMUTABLE: list[Any] = [1, 'x', (1, (2,)), frozendict({1: (2,)}), frozenset({(1,)}), Holder((1,))]


@pytest.mark.parametrize('held', IMMUTABLE, ids=repr)
@pytest.mark.parametrize('record', RECORDS)
def test_records_of_immutable_parts_stay(record: Any, held: Any) -> None:
    """A row or a frozen dataclass that holds nothing mutable is given as it is."""
    value = record(held)
    assert freeze(value, 'users') is value


MUTABLE: list[Any] = [
    [1],
    {1: 2},
    {1},
    (1, [2]),
    ((1, ({2},)),),
    frozendict({1: [2]}),
    Holder([1]),
    Holder((1, {2: 3})),
    Pair(1, [2]),
    MultiRange(),
    (Multirange(),),
    Range([1]),
    (PsycopgRange([1]),),
    row([1]),
    row([1])._mapping,
]


@pytest.mark.parametrize('held', MUTABLE, ids=repr)
@pytest.mark.parametrize('record', RECORDS)
def test_records_with_a_mutable_part_are_refused(record: Any, held: Any) -> None:
    """A row or a frozen dataclass can't be given immutable parts, so they are refused at any
    depth: requests would share what each of them can change."""
    with pytest.raises(ValueNotCacheable, match=r'users: frozen=True, but a .* holds a '):
        freeze(record(held), 'users')


@pytest.mark.parametrize('value', [Changeable(1), [Changeable(1)], Holder((Changeable(1),))])
def test_mutable_dataclasses_are_refused(value: Any) -> None:
    """A dataclass that can be changed says what to do."""
    with pytest.raises(ValueNotCacheable, match='declare it with frozen=True as well'):
        freeze(value, 'users')
