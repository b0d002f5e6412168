"""Decodes the bytes of a value; all other bytes are an error.

It runs no code that the bytes name, and imports nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from frozendict import frozendict
from ormsgpack import packb, unpackb
from sqlalchemy.engine import Row, RowMapping

from onegov_ormcache.errors import UndecodableValue
from onegov_ormcache.tiers import encoding as codes
from onegov_ormcache.tiers.records import Registry, read_member
from onegov_ormcache.tiers.rows import RowKeys
from onegov_ormcache.tiers.scalars import SCALARS, read_int, read_text


class Decoding:
    """The decoding of one value. The serializer makes it for each value.

    ormsgpack discards an exception that the reader of an extension raises, a
    KeyboardInterrupt too, and raises an error of its own. So the first exception is kept
    here.
    """

    __slots__ = ('_fault', 'registry', 'row_keys')

    def __init__(self, registry: Registry, row_keys: RowKeys) -> None:
        self.registry = registry
        self.row_keys = row_keys
        self._fault: BaseException | None = None

    def run(self, data: memoryview) -> Any:
        """Return the value of the bytes.

        :raises UndecodableValue: if the bytes can't be read.
        :raises BaseException: what interrupted the reading, such as KeyboardInterrupt.
        """
        fault: BaseException | None
        try:
            value = unpackb(data, ext_hook=self._read)
            fault = self._fault
        except ValueError as error:
            fault = self._fault or error
        if fault is None:
            return value
        if not isinstance(fault, Exception):
            raise fault
        raise UndecodableValue(f"The stored value can't be read: {fault!r}") from fault

    def content(self, payload: bytes) -> Any:
        """Return the content of an extension's payload that is itself MessagePack."""
        return unpackb(payload, ext_hook=self._read)

    def _read(self, code: int, payload: bytes) -> Any:
        try:
            if scalar := _SCALAR_READERS.get(code):
                return scalar(payload)
            return _READERS[code](self, payload)
        except BaseException as fault:
            self._fault = self._fault or fault
            raise


def _read_dict(decoding: Decoding, payload: bytes) -> object:
    keys, values = decoding.content(payload)
    return dict(zip(keys, values, strict=True))


def _read_frozendict(decoding: Decoding, payload: bytes) -> object:
    keys, values = decoding.content(payload)
    return frozendict(zip(keys, values, strict=True))


def _read_enum(decoding: Decoding, payload: bytes) -> object:
    return read_member(decoding.registry, *decoding.content(payload))


def _read_rows(decoding: Decoding, payload: bytes) -> list[Row[Any]]:
    return decoding.row_keys.build(*decoding.content(payload))


def _read_mappings(decoding: Decoding, payload: bytes) -> list[RowMapping]:
    return [row._mapping for row in _read_rows(decoding, payload)]


def _read_rows_of_fields(decoding: Decoding, payload: bytes) -> list[Row[Any]]:
    """Read rows whose bytes have no keys beside the fields, as release 0.1.0 wrote them."""
    fields, rows = decoding.content(payload)
    return decoding.row_keys.build(packb([fields, [[] for _ in fields]]), rows)


def _read_records(decoding: Decoding, payload: bytes) -> list[object]:
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

_READERS: dict[int, Callable[[Decoding, bytes], object]] = {
    codes.TUPLE: lambda decoding, payload: tuple(decoding.content(payload)),
    codes.SET: lambda decoding, payload: set(decoding.content(payload)),
    codes.FROZENSET: lambda decoding, payload: frozenset(decoding.content(payload)),
    codes.DICT: _read_dict,
    codes.FROZENDICT: _read_frozendict,
    codes.ENUM: _read_enum,
    codes.TUPLES: lambda decoding, payload: list(map(tuple, decoding.content(payload))),
    codes.ROW: lambda decoding, payload: _read_rows_of_fields(decoding, payload)[0],
    codes.ROWS: _read_rows_of_fields,
    codes.KEYED_ROW: lambda decoding, payload: _read_rows(decoding, payload)[0],
    codes.KEYED_ROWS: _read_rows,
    codes.MAPPING: lambda decoding, payload: _read_mappings(decoding, payload)[0],
    codes.MAPPINGS: _read_mappings,
    codes.RECORD: lambda decoding, payload: _read_records(decoding, payload)[0],
    codes.RECORDS: _read_records,
}
