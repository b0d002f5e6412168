"""The values of the caches as bytes, and back: exactly, or not at all.

Written with ormsgpack, never with pickle: reading runs no code that the bytes name.
Knows nothing of properties, tiers and keys.
"""

from __future__ import annotations

import gc
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from ormsgpack import MsgpackEncodeError, packb

from onegov_ormcache.errors import UndecodableValue, ValueNotCacheable
from onegov_ormcache.tiers.decoding import Decoding
from onegov_ormcache.tiers.encoding import LEAVES, SURE_LEAVES, Encoding, Kinds
from onegov_ormcache.tiers.faults import FaultSearch
from onegov_ormcache.tiers.records import Registry
from onegov_ormcache.tiers.refusals import MAX_DEPTH, TOO_DEEP, Refused

#: The format's version. Bytes of another version are a miss.
VERSION = 1

#: Bytes of a value from which on the garbage collector pauses while it is decoded.
LARGE = 100_000

#: The version, and the length of what follows.
_HEADER = struct.Struct('>BQ')


class Encoded(NamedTuple):
    """A value as it is stored."""

    #: The bytes that :meth:`Serializer.decode` reads.
    data: bytes

    #: Whether the value is deeply immutable: it may be shared between requests, while
    #: of a mutable value each gets a copy of its own.
    immutable: bool


class Serializer:
    """Turns values into bytes and back. Safe to share between threads.

    :param types: the NamedTuple, dataclass and Enum classes that the application
        registers (the setting ``types`` of the section ``orm_cache``). Enum classes that
        can be imported need no registration.
    :raises ConfigurationError: a class can't be registered.
    """

    def __init__(self, types: Iterable[type] = ()) -> None:
        self._registry = Registry(types)
        self._kinds = Kinds(self._registry)

    def encode(self, value: object, name: str = 'value') -> Encoded:
        """Return the value as bytes.

        :param name: what messages call the value, such as the property's name.
        :raises ValueNotCacheable: a part of the value would not come back as it is; the
            message names the part and says what to do.
        """
        for leaves in (LEAVES, SURE_LEAVES):
            try:
                encoding = Encoding(self._kinds, leaves)
                body = packb(encoding.one(value, MAX_DEPTH))
            except MsgpackEncodeError:
                continue
            except (Refused, RecursionError):
                break
            return Encoded(_HEADER.pack(VERSION, len(body)) + body, not encoding.mutable)
        raise self._refusal(value, name)

    def decode(self, data: bytes) -> Any:
        """Return the value whose bytes these are, a new one each time.

        :raises UndecodableValue: the bytes are malformed or of another version, or name
            a class that is not known or has changed since.
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
            return Decoding(self._registry).run(memoryview(data)[_HEADER.size :])

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
    """Pause the garbage collector while many objects are made that are all kept.

    It would look at them again and again, for most of the time that a large value takes.
    If several threads decode at once, the first to end lets it go on for all.

    :param size: bytes of the value.
    """
    if size < LARGE or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
