"""Finds the place in a value that keeps it from being cached.

Runs only after a value was refused: the serializer's own pass keeps no track of places,
because most values have no fault and should be written fast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from reprlib import Repr
from typing import Any

from frozendict import frozendict
from sqlalchemy.engine import Row

from onegov_ormcache.tiers.records import Record, row_fields
from onegov_ormcache.tiers.refusals import CIRCULAR, MAX_DEPTH, TOO_DEEP, Refused

_REPR = Repr()
_REPR.maxstring = _REPR.maxother = 60


class Places:
    """A walk through one value, up to its first fault.

    :param records: the registered classes.
    :param check: raises :class:`.Refused` for a value without parts that is not cacheable.
    """

    def __init__(
        self,
        records: Mapping[type, Record],
        check: Callable[[object], object],
    ) -> None:
        self._records = records
        self._check = check
        self._outer: set[int] = set()

    def find(self, value: object, place: str) -> None:
        """Return if the value has no fault.

        :param place: what messages call the value.
        :raises Refused: with the place, what is there, and what to do.
        """
        if id(value) in self._outer:
            raise _At(place, CIRCULAR)
        try:
            parts = self._parts(value, place)
            if parts is None:
                self._check(value)
                return
            if len(self._outer) >= MAX_DEPTH:
                raise _At(place, TOO_DEEP)
            self._outer.add(id(value))
            for part, part_place in parts:
                self.find(part, part_place)
            self._outer.discard(id(value))
        except _At:
            raise
        except Refused as refused:
            raise _At(place, str(refused)) from None

    def _parts(self, value: Any, place: str) -> Iterator[tuple[object, str]] | None:
        """Return the parts of a value with the place of each, None if it has no parts."""
        kind = type(value)
        if place.startswith('key '):
            place = f'({place})'
        if kind is list or kind is tuple:
            return ((part, f'{place}[{index}]') for index, part in enumerate(value))
        if kind is set or kind is frozenset:
            return ((part, f'{place}{{{_shown(part)}}}') for part in value)
        if kind is dict or kind is frozendict:
            return _items(value, place)
        if kind is Row:
            return _fields(place, row_fields([value]) or [], value)
        if record := self._records.get(kind):
            return _fields(place, record.fields, record.values(value))
        return None


class _At(Refused):
    """A refusal that has got its place."""

    def __init__(self, place: str, text: str) -> None:
        super().__init__(f'{place} {text}')


def _shown(value: object) -> str:
    try:
        return _REPR.repr(value)
    except Exception:  # what a message shows must not hide what the message is about
        return f'<{type(value).__name__}>'


def _items(value: dict[object, object], place: str) -> Iterator[tuple[object, str]]:
    for key, part in value.items():
        yield key, f'key {_shown(key)} of {place}'
        yield part, f'{place}[{_shown(key)}]'


def _fields(place: str, names: Any, values: Any) -> Iterator[tuple[object, str]]:
    return ((part, f'{place}.{name}') for name, part in zip(names, values, strict=True))
