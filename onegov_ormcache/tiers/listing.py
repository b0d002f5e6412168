"""Lists what the shared tier has of one tenant, for people, without reading the values themselves.

Redis has no list of a tenant's values, so it looks at all its keys. This module does not know
whether a value is still valid, nor whose it is.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ..redis_client.client import Client
from ..redis_client.scanning import keys
from .process import Stamp, StoredValue
from .stored import MAGIC, DamagedValue, Head, head, overhead, read_head

#: The number of values that Redis is asked about at once.
BATCH = 200

#: The bytes of a value that are read at first: the stamps of most values end before.
BEGIN = 4096


@dataclass(frozen=True)
class Entry:
    """A value in the shared tier."""

    #: Its key, without the tenant's part.
    key: str
    #: The number of its bytes, without key and stamp.
    size: int
    #: The versions of its tags.
    stamp: Stamp
    #: True if it is immutable, so that requests share it.
    is_immutable: bool
    #: Seconds since it was stored; None if nothing tells that.
    age: float | None
    #: Seconds until it goes by itself; None if it does not.
    left: float | None


@dataclass(frozen=True)
class Listing:
    """The values of one tenant that were found."""

    entries: tuple[Entry, ...]
    #: True if there are more.
    is_cut: bool
    #: The number of keys that are no values: damaged, or of another release of the package.
    unreadable: int


def of_memory(values: Mapping[str, StoredValue], most: int) -> Listing:
    """List values in this process's memory.

    :param values: those of one tenant, by key.
    :param most: the most values to list.
    """
    now = time.monotonic()
    found = []
    for key in sorted(values):
        stored = values.get(key)
        if stored is None or (stored.expires is not None and stored.expires <= now):
            continue
        left = None if stored.expires is None else stored.expires - now
        data, immutable = stored.encoded
        found.append(Entry(key, len(data), stored.stamp, immutable, None, left))
    return Listing(tuple(found[:most]), len(found) > most, 0)


def of_redis(client: Client, prefix: str, kept: float | None, most: int) -> Listing:
    """List values on Redis.

    :param client: that of all servers, or of the one which has the keys.
    :param prefix: the begin of the full keys of a tenant's values.
    :param kept: seconds for which a value was kept that has no lifetime of its own; None if they
        are not known.
    :param most: the most values to list.
    :raises StoreUnreachable: if Redis can't be reached.
    """
    server = client.at(prefix)
    names = sorted(keys(server, prefix))
    found: list[Entry] = []
    unreadable = 0
    for batch in _batches(names[:most]):
        for name, size, left, data in _read(server, batch):
            if size == 0:
                continue  # it has gone meanwhile
            entry = _entry(prefix, name, size, left, data, kept)
            if entry is None:
                unreadable += 1
            else:
                found.append(entry)
    return Listing(tuple(found), len(names) > most, unreadable)


def _batches(names: Iterable[str]) -> Iterator[list[str]]:
    left = iter(names)
    while batch := list(islice(left, BATCH)):
        yield batch


def _read(server: Client, names: list[str]) -> Iterator[tuple[str, int, int, bytes]]:
    """Yield each key with its length, its remaining milliseconds and the begin of its bytes. The
    length of a key that is no string is -1."""
    first = _asked(server, names, BEGIN)
    for name, (size, left, data) in zip(names, first, strict=True):
        if isinstance(size, Exception):
            yield name, -1, -1, b''
            continue
        if size > len(data) and data.startswith(MAGIC) and not _has_head(name, data):
            ((size, left, data),) = _asked(server, [name], overhead(name))
        yield name, size, left, data


def _asked(server: Client, names: list[str], most: int) -> list[tuple[Any, Any, Any]]:
    """Return length, remaining milliseconds and the first bytes of keys, in one round trip."""

    def ask() -> list[Any]:
        pipeline = server.pipeline(transaction=False)
        for name in names:
            pipeline.strlen(name)
            pipeline.pttl(name)
            pipeline.getrange(name, 0, most - 1)
        return list(pipeline.execute(raise_on_error=False))

    reply = server.ask(ask)
    return list(zip(reply[::3], reply[1::3], reply[2::3], strict=True))


def _has_head(name: str, data: bytes) -> bool:
    try:
        return read_head(name, data) is not None
    except DamagedValue:
        return False


def _entry(
    prefix: str, name: str, size: int, left: int, data: bytes, kept: float | None
) -> Entry | None:
    """Return the entry of a key; None if it is no value of this key."""
    try:
        found: Head | None = read_head(name, data) if data.startswith(head(name)) else None
    except DamagedValue:
        return None
    if found is None:
        return None
    # a value that does not expire was stored for as long as the tier keeps such ones
    stored_for = found.lifetime / 1000 if found.lifetime else kept
    age = None if stored_for is None or left < 0 else stored_for - left / 1000
    return Entry(
        key=name.removeprefix(prefix),
        size=size - found.length,
        stamp=found.stamp,
        is_immutable=found.immutable,
        age=age if age is None or age >= 0 else None,
        left=left / 1000 if left >= 0 else None,
    )
