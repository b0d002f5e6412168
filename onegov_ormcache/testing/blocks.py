"""Blocks in which a test turns a cache off, or records what it does."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from ..core.recording import LIMIT, RecordedEvents
from .targets import cache_of


def disabled(target: Any) -> AbstractContextManager[None]:
    """Turn a cache off while a ``with`` block runs; see :meth:`.OrmCache.disabled`.

    :param target: an app, a request, an :class:`.OrmCache`, or an object with cached properties.
    :raises ConfigurationError: if it is none of these.
    """
    return cache_of(target, 'disabled').disabled()


def recording(target: Any, limit: int = LIMIT) -> AbstractContextManager[RecordedEvents]:
    """Record what a cache does while a ``with`` block runs; see :meth:`.OrmCache.recording`.

    :param target: an app, a request, an :class:`.OrmCache`, or an object with cached properties.
    :param limit: the most events that are kept.
    :raises ConfigurationError: if the target is none of these, or the limit is no whole number
        above 0.
    """
    return cache_of(target, 'recording').recording(limit)
