"""Ranges and multiranges of PostgreSQL, as SQLAlchemy and psycopg have them.

Each class is a record that every serializer knows. psycopg's are left out where psycopg is not
installed: there are no such values then.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from sqlalchemy.dialects import postgresql

from onegov_ormcache.tiers.records import (
    DataclassRecord,
    Record,
    refuse_extras,
    registered_name,
)

#: The attribute that typing gives to what a generic alias makes, such as ``Multirange[int]()``.
#: It is no part of the value.
ALIAS = '__orig_class__'


class _PsycopgRange:
    """The record of a psycopg class of ranges."""

    fields: tuple[str, ...] = ('lower', 'upper', 'bounds')
    immutable = True

    def __init__(self, cls: Any) -> None:
        self.type = cls
        self.name = registered_name(cls)

    def values(self, instance: Any) -> tuple[object, ...]:
        refuse_extras(instance, ('_lower', '_upper', '_bounds', ALIAS))
        return instance.lower, instance.upper, instance.bounds

    def build(self, values: Iterable[object]) -> object:
        lower, upper, bounds = values
        made = self.type(lower, upper, bounds, empty=not bounds)
        # the class changes bounds that make no sense
        if (made.lower, made.upper, made.bounds) != (lower, upper, bounds):
            raise ValueError(f'{bounds!r} are no bounds of {lower!r} and {upper!r}')
        return made


class _Multirange:
    """The record of a class of multiranges, SQLAlchemy's or psycopg's."""

    fields: tuple[str, ...] = ('ranges',)
    immutable = False

    def __init__(self, cls: Any) -> None:
        self.type = cls
        self.name = registered_name(cls)

    def values(self, instance: Any) -> tuple[object, ...]:
        refuse_extras(instance, ('_ranges', ALIAS))
        return (list(instance),)

    def build(self, values: Iterable[object]) -> object:
        (ranges,) = values
        if type(ranges) is not list:
            raise ValueError(f'{ranges!r} is no list of ranges')
        return self.type(ranges)


def range_records() -> Iterator[Record]:
    """Yield the records of all classes of ranges and multiranges."""
    yield DataclassRecord(postgresql.Range)
    # since SQLAlchemy 2.0.26
    if (multirange := getattr(postgresql, 'MultiRange', None)) is not None:
        yield _Multirange(multirange)
    ranges, multiranges = psycopg_ranges()
    yield from map(_PsycopgRange, ranges)
    yield from map(_Multirange, multiranges)


@cache
def psycopg_ranges() -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return psycopg's classes of ranges and of multiranges; none if it is not installed."""
    try:
        from psycopg.types import multirange, range
    except ImportError:
        return (), ()
    return (
        (
            range.Range,
            range.Int4Range,
            range.Int8Range,
            range.NumericRange,
            range.DateRange,
            range.TimestampRange,
            range.TimestamptzRange,
        ),
        (
            multirange.Multirange,
            multirange.Int4Multirange,
            multirange.Int8Multirange,
            multirange.NumericMultirange,
            multirange.DateMultirange,
            multirange.TimestampMultirange,
            multirange.TimestamptzMultirange,
        ),
    )
