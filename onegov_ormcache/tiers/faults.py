"""Finds the part of a value because of which it can't be cached, and the path to that part.

This runs only after the serializer has refused a value. The serializer keeps no track of
paths, because most values have no fault and should be written fast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from reprlib import Repr
from typing import Any

from frozendict import frozendict
from sqlalchemy.engine import Row, RowMapping

from onegov_ormcache.tiers.records import Record
from onegov_ormcache.tiers.refusals import CIRCULAR, MAX_DEPTH, TOO_DEEP, Refused
from onegov_ormcache.tiers.rows import row_fields

_REPR = Repr()
_REPR.maxstring = _REPR.maxother = 60


class FaultSearch:
    """A search for the first fault of one value.

    The serializer makes it for each value that it has refused.

    :param records: the registered classes.
    :param check: a function that raises :class:`.Refused` if a value without parts can't be
        cached.
    """

    def __init__(
        self,
        records: Mapping[type, Record],
        check: Callable[[object], object],
    ) -> None:
        self._records = records
        self._check = check
        self._outer: set[int] = set()

    def find(self, value: object, path: str) -> None:
        """Raise an error for the first fault of the value; return None if it has none.

        :param path: the name that messages use for the value.
        :raises Refused: with the path, the fault, and what to do about it.
        """
        if id(value) in self._outer:
            raise _At(path, CIRCULAR)
        try:
            parts = self._parts(value, path)
            if parts is None:
                self._check(value)
                return
            if len(self._outer) >= MAX_DEPTH:
                raise _At(path, TOO_DEEP)
            self._outer.add(id(value))
            for part, part_path in parts:
                self.find(part, part_path)
            self._outer.discard(id(value))
        except _At:
            raise
        except Refused as refused:
            raise _At(path, str(refused)) from None

    def _parts(self, value: Any, path: str) -> Iterator[tuple[object, str]] | None:
        """Return the parts of a value, each with its path; None if it has no parts."""
        kind = type(value)
        if path.startswith('key '):
            path = f'({path})'
        if kind is list or kind is tuple:
            return ((part, f'{path}[{index}]') for index, part in enumerate(value))
        if kind is set or kind is frozenset:
            return ((part, f'{path}{{{_shown(part)}}}') for part in value)
        if kind is dict or kind is frozendict:
            return _items(value, path)
        if kind is Row:
            return _fields(path, row_fields(value), value)
        if kind is RowMapping:
            row_fields(value)
            return _items(value, path)
        if record := self._records.get(kind):
            return _fields(path, record.fields, record.values(value))
        return None


class _At(Refused):
    """A refusal whose text begins with the path."""

    def __init__(self, path: str, text: str) -> None:
        super().__init__(f'{path} {text}')


def _shown(value: object) -> str:
    try:
        return _REPR.repr(value)
    except Exception:  # a failing repr must not hide the fault that the message is about
        return f'<{type(value).__name__}>'


def _items(value: Mapping[Any, object], path: str) -> Iterator[tuple[object, str]]:
    for key, part in value.items():
        yield key, f'key {_shown(key)} of {path}'
        yield part, f'{path}[{_shown(key)}]'


def _fields(path: str, names: Any, values: Any) -> Iterator[tuple[object, str]]:
    return ((part, f'{path}.{name}') for name, part in zip(names, values, strict=True))
