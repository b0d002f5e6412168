"""Turns cached values into bytes and back without loss, or refuses them.

It uses ormsgpack and not pickle, because reading must not run code that the bytes name. It
knows nothing of properties, tiers and keys.
"""

from __future__ import annotations

import gc
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from ormsgpack import MsgpackEncodeError
from sqlalchemy import Table

from onegov_ormcache.errors import UndecodableValue, ValueNotCacheable
from onegov_ormcache.tiers.decoding import Decoding
from onegov_ormcache.tiers.encoding import LEAVES, SURE_LEAVES, Encoding, Kinds
from onegov_ormcache.tiers.faults import FaultSearch
from onegov_ormcache.tiers.ranges import range_records
from onegov_ormcache.tiers.records import Registry
from onegov_ormcache.tiers.refusals import MAX_DEPTH, TOO_DEEP, Refused
from onegov_ormcache.tiers.rows import RowKeys

#: The version of the format. Bytes of another version can't be decoded, which is a miss.
VERSION = 2

#: The size of a value, in bytes, from which on decoding it pauses the garbage collector.
LARGE = 100_000

#: The version of the format, and the number of bytes that follow.
_HEADER = struct.Struct('>BQ')


class Encoded(NamedTuple):
    """A value as it is stored."""

    #: The bytes that :meth:`Serializer.decode` reads.
    data: bytes

    #: True if the value is deeply immutable, so that requests can share it. Of a mutable
    #: value, each request gets a copy of its own.
    immutable: bool


class Serializer:
    """Turns values into bytes and back. Safe to share between threads.

    :param types: the NamedTuple, dataclass and Enum classes that the application
        registers (the setting ``types`` of the section ``orm_cache``). An enum class needs
        no registration if its module has it by its name.
    :param tables: the tables of the application's metadata, by their full names: rows find
        values by their columns.
    :raises ConfigurationError: if a class can't be registered.
    """

    def __init__(
        self, types: Iterable[type] = (), tables: Mapping[str, Table] | None = None
    ) -> None:
        self._registry = Registry(types, range_records())
        self._row_keys = RowKeys({} if tables is None else tables)
        self._kinds = Kinds(self._registry, self._row_keys)

    def encode(self, value: object, name: str = 'value') -> Encoded:
        """Return the value as bytes.

        :param name: the name that messages use for the value, such as the property's.
        :raises ValueNotCacheable: if a part of the value would not be decoded to what it is;
            the message names the part and says what to do about it.
        """
        for leaves in (LEAVES, SURE_LEAVES):
            try:
                encoding = Encoding(self._kinds, leaves)
                body = encoding.whole(value, MAX_DEPTH)
            except MsgpackEncodeError:
                continue
            except (Refused, RecursionError):
                break
            return Encoded(_HEADER.pack(VERSION, len(body)) + body, not encoding.mutable)
        raise self._refusal(value, name)

    def decode(self, data: bytes) -> Any:
        """Return the value of the bytes, each time as a new object.

        :raises UndecodableValue: if the bytes are malformed or of another version, or if
            they name a class that is not known or has other fields now.
        """
        if len(data) < _HEADER.size:
            raise UndecodableValue('The stored value is cut off.')
        version, length = _HEADER.unpack_from(data)
        if version != VERSION or length != len(data) - _HEADER.size:
            raise UndecodableValue(
                f'The stored value has format {version} and {length} bytes, not format '
                f'{VERSION} and {len(data) - _HEADER.size} bytes.'
            )
        with paused_collection(length):
            return Decoding(self._registry, self._row_keys).run(memoryview(data)[_HEADER.size :])

    def _refusal(self, value: object, name: str) -> ValueNotCacheable:
        encoding = Encoding(self._kinds, SURE_LEAVES)
        records = {record.type: record for record in self._registry.records.values()}
        search = FaultSearch(records, lambda part: encoding.one(part, 1))
        try:
            search.find(value, name)
        except Refused as refused:
            return ValueNotCacheable(f"{name} can't be cached: {refused}")
        except RecursionError:
            pass
        return ValueNotCacheable(f"{name} can't be cached: it {TOO_DEEP}")


@contextmanager
def paused_collection(size: int) -> Iterator[None]:
    """Pause the garbage collector during a ``with`` block that makes many objects.

    Otherwise it would examine these objects again and again although all are kept, which
    takes most of the time of decoding a large value. If several threads decode at once, the
    collector may run again before all have ended: the thread that paused it ends the pause.

    :param size: the size of the value in bytes; below :data:`LARGE` nothing is paused.
    """
    if size < LARGE or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
