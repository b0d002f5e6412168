"""The numbers of all processes on Redis: bounded, and gone if nobody adds any for a week.

A tenant has a hash of sums, one for each hour, and a list of its latest commits. What a process
adds is added by one script, so that no reader sees a part of it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.resources import files
from itertools import chain, islice
from typing import Any, TypeVar

import ormsgpack
from redis.exceptions import NoPermissionError, ResponseError

from ..redis_client.client import Client, hash_tag
from ..redis_client.sent import OF_STATISTICS
from .fields import COMMITS, DROPPED, MAX_FIELDS, TAG, Delta, by_hour
from .stores import ALL_TENANTS, HOUR, HOURS, LIFETIME

log = logging.getLogger(__name__)

T = TypeVar('T')

#: The most fields that one command adds, so that none stops the server for long.
BATCH = 500

#: The most tenants that are listed.
MAX_LISTED = 100_000

#: The part of all keys of numbers after the tenant.
KEY = ':statistics'


class RedisStatistics:
    """The numbers on one Redis; see :class:`~.stores.StatisticsStore`.

    :param client: made by :func:`onegov_ormcache.redis_client.client.connect`.
    :param namespace: separates applications that share a Redis.
    """

    def __init__(self, client: Client, namespace: str) -> None:
        self._client = client
        self._namespace = namespace
        folder = files(__package__) / 'lua'
        self._script = client.register_script((folder / 'add.lua').read_text())
        self._slots = client.register_script((folder / 'slots.lua').read_text())
        self._is_refused = False

    def add(self, deltas: dict[str, Delta]) -> None:
        if named := [name for name in deltas if name != ALL_TENANTS]:
            self._list(named)
        while deltas:
            tenant, delta = deltas.popitem()
            try:
                self._add(tenant, delta)
            except BaseException:
                if any(delta):
                    deltas[tenant] = delta
                raise

    def tenants(self) -> list[str]:
        key = self._list_key()
        client = self._client.at(key)
        found = self._ask(client, lambda: client.zrange(key, 0, -1))
        return sorted(_text(name) for name in found)

    def fields(self, tenant: str) -> tuple[Mapping[str, Any], Sequence[str]]:
        key = self._key(tenant)
        client = self._client.at(key)
        fields = self._ask(client, lambda: client.hgetall(key))
        commits = self._ask(client, lambda: client.lrange(f'{key}:commits', 0, COMMITS - 1))
        return _decoded(fields), [_text(commit) for commit in commits]

    def slots(self, tenant: str) -> list[tuple[float, Mapping[str, Any]]]:
        key = self._key(tenant)
        client = self._client.at(key)
        found: Any = self._ask(client, partial(self._slots, [key], [HOUR, HOURS], client))
        return [
            (float(hour * HOUR), _decoded(dict(zip(fields[::2], fields[1::2], strict=True))))
            for hour, fields in zip(found[::2], found[1::2], strict=True)
        ]

    def _add(self, tenant: str, delta: Delta) -> None:
        """Add what was counted for a tenant, in several commands if it is much; take out of it
        what was added."""
        counts, texts, commits = delta
        key = self._key(tenant)
        while any(delta):
            some = dict(islice(counts.items(), BATCH))
            told = dict(islice(texts.items(), BATCH))
            latest = commits[:COMMITS]
            packed = ormsgpack.packb(
                (_flat(some), _flat(by_hour(some)), list(chain(*told.items())), latest)
            )
            limits = LIFETIME, HOUR, HOUR * (HOURS + 1), MAX_FIELDS, COMMITS, DROPPED, TAG
            client = self._client.at(key)
            self._ask(client, partial(self._script, [key], [packed, *limits], client))
            for field in some:
                del counts[field]
            for field in told:
                del texts[field]
            del commits[: len(latest)]

    def _list(self, tenants: Sequence[str]) -> None:
        """Add tenants to the list of those that have numbers; drop those whose numbers are
        gone."""
        key, now = self._list_key(), time.time()
        client = self._client.at(key)
        for first in range(0, len(tenants), BATCH):
            some = dict.fromkeys(tenants[first : first + BATCH], now)
            self._ask(client, partial(client.zadd, key, some))
        self._ask(client, lambda: client.zremrangebyscore(key, '-inf', now - LIFETIME))
        self._ask(client, lambda: client.zremrangebyrank(key, 0, -MAX_LISTED - 1))

    def _ask(self, client: Client, question: Callable[[], T]) -> T:
        """Return the answer of Redis, as :meth:`.Client.ask` does.

        A Redis that grants what the cache needs, and not what the numbers need, is not lost.
        """

        def allowed() -> T:
            try:
                return question()
            except NoPermissionError as error:
                if not self._is_refused:
                    self._is_refused = True
                    log.warning('Redis does not let us keep statistics: %s', error)
                raise ResponseError(str(error)) from None

        token = OF_STATISTICS.set(True)
        try:
            return client.ask(allowed)
        finally:
            OF_STATISTICS.reset(token)

    def _key(self, tenant: str) -> str:
        return hash_tag(self._namespace, tenant) + KEY

    def _list_key(self) -> str:
        return hash_tag(self._namespace, '') + KEY + ':tenants'


def _flat(counts: Mapping[str, float]) -> list[str]:
    """Return fields and numbers by turns."""
    return [part for field, number in counts.items() for part in (field, repr(number))]


def _decoded(fields: Mapping[Any, Any]) -> dict[str, str]:
    return {_text(field): _text(value) for field, value in fields.items()}


def _text(data: Any) -> str:
    return data.decode(errors='backslashreplace') if isinstance(data, bytes) else str(data)
