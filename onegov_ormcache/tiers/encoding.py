"""Turns a value into an object that ormsgpack writes without loss.

Values of MessagePack's own types (None, bool, int, float, str, bytes, lists, dicts with
texts as keys) are left as they are, so that large values are read at ormsgpack's speed.
Every other value without parts becomes an extension: a code for its kind, and a payload.

Every other container becomes a part of its own: a code, and its content as MessagePack. An
extension stands in its place that refers to it. A part comes after those that it refers to. So a
value is read part by part, and not part within part: however deeply bytes are nested, reading them
needs no more of the stack than MessagePack's own lists in one part do, which ormsgpack limits.
Only a small container without any others in it is an extension itself, because it is read faster.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from enum import Enum, EnumType
from itertools import chain
from types import NoneType
from typing import Any

from frozendict import frozendict
from ormsgpack import Ext, packb
from sqlalchemy.engine import Row, RowMapping

from onegov_ormcache.tiers.records import Record, Registry, write_member
from onegov_ormcache.tiers.refusals import MAX_DEPTH, TOO_DEEP, Refused, class_name, reason
from onegov_ormcache.tiers.rows import RowKeys
from onegov_ormcache.tiers.scalars import SCALARS, write_int, write_text

# codes of the extensions; scalars.py has the codes of scalars
INT, STR, TUPLE, SET, FROZENSET, DICT, ENUM = 1, 2, 3, 4, 5, 6, 7
RECORD, TUPLES, RECORDS, FROZENDICT = 9, 10, 12, 13
KEYED_ROW, KEYED_ROWS, MAPPING, MAPPINGS = 14, 15, 16, 17

#: The code of an extension that refers to a part, by its number.
PART = 18

#: The code of a part that is MessagePack and no container of another kind.
PLAIN = 0

#: The most bytes of a container that is an extension itself.
SMALL = 200

#: Finds the begin of any extension that is no scalar. It may find other bytes, too.
_NESTED = re.compile(rb'[\xd4-\xd8][\x03-\x12]|\xc7.[\x03-\x12]', re.DOTALL)

#: Before each part: its code, and the number of its bytes.
PART_HEAD = struct.Struct('>BI')

#: The payload of such an extension.
NUMBER = struct.Struct('>I')

#: The types of values that ormsgpack writes and reads without loss. It refuses integers that
#: do not fit into 64 bits, and texts with lone surrogates.
LEAVES: frozenset[type] = frozenset({NoneType, bool, int, float, str, bytes})

#: The types among these of which it refuses no value.
SURE_LEAVES = LEAVES - {int, str}


class Encoding:
    """The encoding of one value. The serializer makes it for each value.

    The argument ``room`` of its methods is the number of levels of containers that the value
    may still have. Each method raises :class:`.Refused` if a part of the value can't be
    cached, or if there are more levels.

    :param leaves: types of values that are left to ormsgpack as they are.
    """

    __slots__ = ('_kinds', '_last', '_number', '_written', 'keys', 'leaves', 'mutable')

    def __init__(self, kinds: Kinds, leaves: frozenset[type]) -> None:
        self._kinds = kinds
        self.leaves = leaves
        #: Types of keys of the dicts that are left to ormsgpack.
        self.keys = leaves & {str}
        #: True if a part of the value is mutable.
        self.mutable = False
        self._written: list[bytes] = []
        self._number = 0
        self._last: object = None

    def whole(self, value: object, room: int) -> bytes:
        """Return the bytes of the value: its parts, of which the last is the value itself."""
        written = self.one(value, room)
        if written is not self._last or self._last is None:
            self.part(PLAIN, written, MAX_DEPTH)
        return b''.join(self._written)

    def part(self, code: int, content: object, room: int) -> Ext:
        """Write a container, and return an extension that is it, or refers to it."""
        payload = packb(content)
        if room < MAX_DEPTH and len(payload) <= SMALL and not _NESTED.search(payload):
            return Ext(code, payload)
        self._written += (PART_HEAD.pack(code, len(payload)), payload)
        self._last = Ext(PART, NUMBER.pack(self._number))
        self._number += 1
        return self._last

    def one(self, value: object, room: int) -> object:
        """Return an object that decodes to the value."""
        kind = type(value)
        return value if kind in self.leaves else self._kinds[kind](self, value, room)

    def many(self, values: Sequence[object], room: int) -> object:
        """Return an object that decodes to a list of the values of one container."""
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
        """Return an object that decodes to the dict."""
        if not self.keys.issuperset(map(type, value)):
            keys, values = list(value), list(value.values())
            return self.part(DICT, [self.many(keys, room), self.many(values, room)], room)
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
        """Return an object that decodes to a list with a list of each row's values."""
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
    """The functions that write the values of a type, by type. Made once per serializer.

    An enum class is added when its first member is written; for a type that can't be cached
    there is a function that raises :class:`.Refused`. ``tables`` has functions that write all
    values of one container together, if these are of one type: what they have in common
    (keys, a class) is then written once, and read at once. Such a function returns None if
    the values do not have enough in common.

    :param registry: the classes that the application registers.
    :param row_keys: names the keys of rows.
    """

    def __init__(self, registry: Registry, row_keys: RowKeys) -> None:
        super().__init__(_WRITERS)
        self.tables: dict[type, _Table] = {tuple: _write_tuples}
        self[Row], self.tables[Row] = _row_writers(row_keys, KEYED_ROW, KEYED_ROWS, tuple)
        self[RowMapping], self.tables[RowMapping] = _row_writers(
            row_keys, MAPPING, MAPPINGS, lambda row: tuple(row.values())
        )
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
    content = [encoding.many(keys, room), encoding.many(values, room)]
    return encoding.part(FROZENDICT, content, room)


def _write_set(encoding: Encoding, value: set[object], room: int) -> object:
    encoding.mutable = True
    return encoding.part(SET, encoding.many(list(value), room), room)


def _write_frozenset(encoding: Encoding, value: frozenset[object], room: int) -> object:
    return encoding.part(FROZENSET, encoding.many(list(value), room), room)


def _write_tuple(encoding: Encoding, value: tuple[object, ...], room: int) -> object:
    return encoding.part(TUPLE, encoding.many(value, room), room)


def _write_tuples(encoding: Encoding, values: Sequence[Any], room: int) -> object:
    return encoding.part(TUPLES, encoding.matrix(values, room), room)


def _row_writers(
    row_keys: RowKeys, one: int, many: int, values: Callable[[Any], tuple[object, ...]]
) -> tuple[_Writer, _Table]:
    """Return the functions that write rows, or the mappings of rows.

    :param one: the code of one row.
    :param many: the code of a list of rows.
    :param values: returns the values of a row.
    """

    def write_one(encoding: Encoding, row: Any, room: int) -> object:
        content = [row_keys.header([row]), encoding.matrix([values(row)], room)]
        return encoding.part(one, content, room)

    def write_many(encoding: Encoding, rows: Sequence[Any], room: int) -> object:
        header = row_keys.header(rows)
        if header is None:
            return None
        return encoding.part(many, [header, encoding.matrix(list(map(values, rows)), room)], room)

    return write_one, write_many


def _record_writers(record: Record) -> tuple[_Writer, _Table]:
    def payload(encoding: Encoding, instances: Sequence[Any], room: int) -> object:
        if not record.immutable:
            encoding.mutable = True
        rows = [record.values(instance) for instance in instances]
        return [record.name, record.fields, encoding.matrix(rows, room)]

    def write_one(encoding: Encoding, instance: object, room: int) -> object:
        return encoding.part(RECORD, payload(encoding, [instance], room), room)

    def write_many(encoding: Encoding, instances: Sequence[Any], room: int) -> object:
        return encoding.part(RECORDS, payload(encoding, instances, room), room)

    return write_one, write_many


def _write_enum(encoding: Encoding, member: Enum, room: int) -> object:
    return Ext(ENUM, packb(write_member(member)))


def _scalar_writer(code: int, write: Callable[[Any], bytes]) -> _Writer:
    return lambda encoding, value, room: Ext(code, write(value))


_WRITERS: dict[type, _Writer] = {
    int: _write_int,
    str: _write_str,
    list: _write_list,
    dict: _write_dict,
    frozendict: _write_frozendict,
    set: _write_set,
    frozenset: _write_frozenset,
    tuple: _write_tuple,
    **{scalar.type: _scalar_writer(scalar.code, scalar.write) for scalar in SCALARS},
}
