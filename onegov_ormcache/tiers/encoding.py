"""Turns a value into what ormsgpack writes exactly.

What MessagePack has itself (None, bool, int, float, str, bytes, lists, dicts with texts
as keys) is left to it, so that the largest values are read at its speed. Everything else
is an extension: a code for its kind and a payload, mostly MessagePack again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum, EnumType
from itertools import chain
from types import NoneType
from typing import Any

from frozendict import frozendict
from ormsgpack import Ext, packb
from sqlalchemy.engine import Row

from onegov_ormcache.tiers.records import Record, Registry, row_fields, write_member
from onegov_ormcache.tiers.refusals import TOO_DEEP, Refused, class_name, reason
from onegov_ormcache.tiers.scalars import SCALARS, write_int, write_text

# codes of the extensions; those of scalars are in scalars.py
INT, STR, TUPLE, SET, FROZENSET, DICT, ENUM = 1, 2, 3, 4, 5, 6, 7
ROW, RECORD, TUPLES, ROWS, RECORDS, FROZENDICT = 8, 9, 10, 11, 12, 13

#: The types that ormsgpack writes and reads exactly, if integers have 64 bits and texts
#: no lone surrogates: if not, it refuses them.
LEAVES: frozenset[type] = frozenset({NoneType, bool, int, float, str, bytes})

#: The types that it always writes exactly.
SURE_LEAVES = LEAVES - {int, str}


class Encoding:
    """One value on its way to bytes: turns it into what ormsgpack writes exactly.

    ``room`` is how many levels of containers may still come.
    """

    __slots__ = ('_kinds', 'keys', 'leaves', 'mutable')

    def __init__(self, kinds: Kinds, leaves: frozenset[type]) -> None:
        self._kinds = kinds
        self.leaves = leaves
        self.keys = leaves & {str}
        self.mutable = False

    def one(self, value: object, room: int) -> object:
        """Return what decodes to the value."""
        kind = type(value)
        return value if kind in self.leaves else self._kinds[kind](self, value, room)

    def many(self, values: Sequence[object], room: int) -> object:
        """Return what decodes to a list of the values, which are one container's."""
        if not room:
            raise Refused(TOO_DEEP)
        types = set(map(type, values))
        leaves, kinds = self.leaves, self._kinds
        if types <= leaves:
            return values
        room -= 1
        if len(types) == 1 and (table := kinds.tables.get(next(iter(types)))):
            written = table(self, values, room)
            if written is not None:
                return written
        return [
            value if type(value) in leaves else kinds[type(value)](self, value, room)
            for value in values
        ]

    def mapping(self, value: dict[Any, object], room: int) -> object:
        """Return what decodes to the dict."""
        if not self.keys.issuperset(map(type, value)):
            keys, values = list(value), list(value.values())
            return _ext(DICT, [self.many(keys, room), self.many(values, room)])
        if not room:
            raise Refused(TOO_DEEP)
        leaves, kinds = self.leaves, self._kinds
        room -= 1
        written = value
        for key, part in value.items():
            if type(part) not in leaves:
                if written is value:
                    written = value.copy()
                written[key] = kinds[type(part)](self, part, room)
        return written

    def matrix(self, rows: Sequence[Any], room: int) -> object:
        """Return what decodes to a list of lists of the rows' values."""
        if not room:
            raise Refused(TOO_DEEP)
        if self.leaves.issuperset(map(type, chain.from_iterable(rows))):
            return rows
        leaves, kinds = self.leaves, self._kinds
        room -= 1
        return [
            [part if type(part) in leaves else kinds[type(part)](self, part, room) for part in row]
            for row in rows
        ]


_Writer = Callable[[Encoding, Any, int], object]
_Table = Callable[[Encoding, Sequence[Any], int], object]


class Kinds(dict[type, _Writer]):
    """How the values of a type are written, for each type met so far.

    ``tables`` has the types of which many in one container are written together, so
    that what they have in common (keys, a class) is written once, and read at once.
    Such a writer returns None if these have not enough in common.
    """

    def __init__(self, registry: Registry) -> None:
        super().__init__(_WRITERS)
        self.tables: dict[type, _Table] = {tuple: _write_tuples, Row: _write_rows}
        self._registry = registry
        for record in registry.records.values():
            self[record.type], self.tables[record.type] = _record_writers(record)

    def __missing__(self, cls: type) -> _Writer:
        if not isinstance(cls, EnumType):
            return _refuse
        try:
            found = self._registry.enum(cls.__module__, cls.__qualname__)
        except LookupError:
            found = None
        if found is not cls:
            return _refuse_enum
        self[cls] = _write_enum
        return _write_enum


def _refuse(encoding: Encoding, value: object, room: int) -> object:
    raise Refused(reason(value))


def _refuse_enum(encoding: Encoding, member: Enum, room: int) -> object:
    raise Refused(
        f'is {member!r}, but {class_name(type(member))} is not found by this name. Define it '
        'in a module, or add it to the setting `types` of the section `orm_cache`.'
    )


def _write_int(encoding: Encoding, value: int, room: int) -> object:
    return value if -(2**63) <= value < 2**64 else Ext(INT, write_int(value))


def _write_str(encoding: Encoding, value: str, room: int) -> object:
    return Ext(STR, write_text(value)) if _has_surrogates(value) else value


def _has_surrogates(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return True
    return False


def _write_list(encoding: Encoding, value: list[object], room: int) -> object:
    encoding.mutable = True
    return encoding.many(value, room)


def _write_dict(encoding: Encoding, value: dict[object, object], room: int) -> object:
    encoding.mutable = True
    return encoding.mapping(value, room)


def _write_frozendict(
    encoding: Encoding, value: frozendict[object, object], room: int
) -> object:
    keys, values = list(value), list(value.values())
    return _ext(FROZENDICT, [encoding.many(keys, room), encoding.many(values, room)])


def _write_set(encoding: Encoding, value: set[object], room: int) -> object:
    encoding.mutable = True
    return _ext(SET, encoding.many(list(value), room))


def _write_frozenset(encoding: Encoding, value: frozenset[object], room: int) -> object:
    return _ext(FROZENSET, encoding.many(list(value), room))


def _write_tuple(encoding: Encoding, value: tuple[object, ...], room: int) -> object:
    return _ext(TUPLE, encoding.many(value, room))


def _write_tuples(encoding: Encoding, values: Sequence[Any], room: int) -> object:
    return _ext(TUPLES, encoding.matrix(values, room))


def _write_row(encoding: Encoding, row: Row[Any], room: int) -> object:
    return _ext(ROW, [row_fields([row]), encoding.matrix([tuple(row)], room)])


def _write_rows(encoding: Encoding, rows: Sequence[Any], room: int) -> object:
    fields = row_fields(rows)
    if fields is None:
        return None
    return _ext(ROWS, [fields, encoding.matrix(list(map(tuple, rows)), room)])


def _record_writers(record: Record) -> tuple[_Writer, _Table]:
    def payload(encoding: Encoding, instances: Sequence[Any], room: int) -> object:
        if not record.immutable:
            encoding.mutable = True
        rows = [record.values(instance) for instance in instances]
        return [record.name, record.fields, encoding.matrix(rows, room)]

    def write_one(encoding: Encoding, instance: object, room: int) -> object:
        return _ext(RECORD, payload(encoding, [instance], room))

    def write_many(encoding: Encoding, instances: Sequence[Any], room: int) -> object:
        return _ext(RECORDS, payload(encoding, instances, room))

    return write_one, write_many


def _write_enum(encoding: Encoding, member: Enum, room: int) -> object:
    return _ext(ENUM, write_member(member))


def _scalar_writer(code: int, write: Callable[[Any], bytes]) -> _Writer:
    return lambda encoding, value, room: Ext(code, write(value))


def _ext(code: int, content: object) -> Ext:
    return Ext(code, packb(content))


_WRITERS: dict[type, _Writer] = {
    int: _write_int,
    str: _write_str,
    list: _write_list,
    dict: _write_dict,
    frozendict: _write_frozendict,
    set: _write_set,
    frozenset: _write_frozenset,
    tuple: _write_tuple,
    Row: _write_row,
    **{scalar.type: _scalar_writer(scalar.code, scalar.write) for scalar in SCALARS},
}
