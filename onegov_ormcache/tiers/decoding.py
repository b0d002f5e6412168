"""Decodes the bytes of a value; all other bytes are an error.

It runs no code that the bytes name, and imports nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from frozendict import frozendict
from ormsgpack import unpackb
from sqlalchemy.engine import Row, RowMapping

from onegov_ormcache.errors import UndecodableValue
from onegov_ormcache.tiers import encoding as codes
from onegov_ormcache.tiers.records import Registry, read_member
from onegov_ormcache.tiers.refusals import MAX_DEPTH
from onegov_ormcache.tiers.rows import RowKeys
from onegov_ormcache.tiers.scalars import SCALARS, read_int, read_text


class Decoding:
    """The decoding of one value. The serializer makes it for each value.

    ormsgpack discards an exception that the reader of an extension raises, a
    KeyboardInterrupt too, and raises an error of its own. So the first exception is kept
    here.
    """

    __slots__ = ('_depth', '_fault', '_is_small', '_parts', 'registry', 'row_keys')

    def __init__(self, registry: Registry, row_keys: RowKeys) -> None:
        self.registry = registry
        self.row_keys = row_keys
        self._fault: BaseException | None = None
        # each part, until another one has taken it, with the number of levels of parts in it
        self._parts: list[tuple[object, int] | None] = []
        self._depth = 0
        # True while a container is read that is an extension, and has none in it
        self._is_small = False

    def run(self, data: memoryview) -> Any:
        """Return the value of the bytes.

        :raises UndecodableValue: if the bytes can't be read.
        :raises BaseException: what interrupted the reading, such as KeyboardInterrupt.
        """
        try:
            return self._run(data)
        except Exception as error:
            fault = self._fault or error
        if not isinstance(fault, Exception):
            raise fault
        raise UndecodableValue(f"The stored value can't be read: {fault!r:.500}") from fault

    def _run(self, data: memoryview) -> Any:
        at, value = 0, None
        while at < len(data) or not self._parts:
            code, length = codes.PART_HEAD.unpack_from(data, at)
            at += codes.PART_HEAD.size
            payload = data[at : at + length]
            at += length
            if len(payload) != length:
                raise ValueError('a part is cut off')
            self._depth = 0
            value = _READERS[code](self, payload)
            if self._fault is not None:
                raise self._fault
            if self._depth >= MAX_DEPTH:
                raise ValueError('it is nested too deeply')
            self._parts.append((value, self._depth + 1))
        return value

    def content(self, payload: bytes | memoryview) -> Any:
        """Return the content of a part, which is MessagePack."""
        return unpackb(payload, ext_hook=self._read)

    def _read(self, code: int, payload: bytes) -> Any:
        try:
            if scalar := _SCALAR_READERS.get(code):
                return scalar(payload)
            if self._is_small:
                raise ValueError('an extension has another one in it')
            if code == codes.PART:
                return self._take(*codes.NUMBER.unpack(payload))
            if code == codes.ENUM:
                return read_member(self.registry, *unpackb(payload))
            if code == codes.PLAIN or len(payload) > codes.SMALL:
                raise ValueError('a container is no part')
            self._is_small = True
            value = _READERS[code](self, payload)
            self._is_small = False
            return value
        except BaseException as fault:
            self._fault = self._fault or fault
            raise

    def _take(self, number: int) -> object:
        """Return a part that was read before, which nobody else has: one that is mutable must not
        be in two places, and one that is twice in another, and so on, would be endless to hash."""
        part = self._parts[number]
        if part is None:
            raise ValueError('a part is in two places')
        self._parts[number] = None
        value, depth = part
        self._depth = max(self._depth, depth)
        return value


def _read_dict(decoding: Decoding, payload: bytes | memoryview) -> object:
    keys, values = decoding.content(payload)
    return dict(zip(keys, values, strict=True))


def _read_frozendict(decoding: Decoding, payload: bytes | memoryview) -> object:
    keys, values = decoding.content(payload)
    return frozendict(zip(keys, values, strict=True))


def _read_rows(decoding: Decoding, payload: bytes | memoryview) -> list[Row[Any]]:
    return decoding.row_keys.build(*decoding.content(payload))


def _read_mappings(decoding: Decoding, payload: bytes | memoryview) -> list[RowMapping]:
    return [row._mapping for row in _read_rows(decoding, payload)]


def _read_records(decoding: Decoding, payload: bytes | memoryview) -> list[object]:
    name, fields, rows = decoding.content(payload)
    record = decoding.registry.records[name]
    if list(record.fields) != fields or set(map(len, rows)) - {len(fields)}:
        raise ValueError(f'{name} has other fields now')
    return [record.build(values) for values in rows]


_SCALAR_READERS: dict[int, Callable[[bytes], object]] = {
    codes.INT: read_int,
    codes.STR: read_text,
    **{scalar.code: scalar.read for scalar in SCALARS},
}

_READERS: dict[int, Callable[[Decoding, bytes | memoryview], object]] = {
    codes.PLAIN: Decoding.content,
    codes.TUPLE: lambda decoding, payload: tuple(decoding.content(payload)),
    codes.SET: lambda decoding, payload: set(decoding.content(payload)),
    codes.FROZENSET: lambda decoding, payload: frozenset(decoding.content(payload)),
    codes.DICT: _read_dict,
    codes.FROZENDICT: _read_frozendict,
    codes.TUPLES: lambda decoding, payload: list(map(tuple, decoding.content(payload))),
    codes.KEYED_ROW: lambda decoding, payload: _read_rows(decoding, payload)[0],
    codes.KEYED_ROWS: _read_rows,
    codes.MAPPING: lambda decoding, payload: _read_mappings(decoding, payload)[0],
    codes.MAPPINGS: _read_mappings,
    codes.RECORD: lambda decoding, payload: _read_records(decoding, payload)[0],
    codes.RECORDS: _read_records,
}
