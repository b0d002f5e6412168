"""Batches of values: what one command claims or stores on Redis.

A command has a bound, so that it keeps the server from others for some milliseconds at most. This
module does not know how the values are stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeVar

from .claims import Lock
from .process import Stamp

#: The most values that one command claims or stores.
BATCH = 1000

#: The most bytes of values that one command stores, unless one value alone has more.
BATCH_BYTES = 4 * 1024 * 1024

T = TypeVar('T')


class ToFill(NamedTuple):
    """A value to store on Redis."""

    #: The versions that must hold.
    stamp: Stamp
    #: The full key of Redis.
    key: str
    value: bytes
    #: Seconds after which Redis drops it; None: never.
    ttl: float | None
    #: The lock of its computation, which is given back in any case.
    lock: Lock | None


def batches(values: Iterable[tuple[T, ToFill]]) -> Iterator[list[tuple[T, ToFill]]]:
    """Yield the values, each with what comes with it, in batches that one command stores."""
    batch: list[tuple[T, ToFill]] = []
    size = 0
    for each in values:
        added = len(each[1].value)
        if batch and (len(batch) == BATCH or size + added > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(each)
        size += added
    if batch:
        yield batch
