"""Looks at what a tag store has of all tenants, for people. Looking gives no tenant a birth, and
changes nothing.

A tag store works for one process, with the identities that the process has found. An overview
works beside it, with what the store lists: of several identities of a tenant's database, the one
that was found last. It also evicts, without a transaction. This module does not know the values.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import redis
from redis.exceptions import NoPermissionError

from ..redis_client.client import Client, hash_tag
from ..redis_client.scanning import keys
from .memory import MemoryTagStore
from .places import PlacedTagStore
from .redis import READ_FIELDS, RedisTagStore
from .snapshot import TABLE_TAG, Snapshot, TagStore, new_token
from .state import DamagedState, read_identities, read_state

#: The most fields of a tenant's state that are read, see ``lua/common.lua``.
MAX_FIELDS = 100_000


@dataclass(frozen=True)
class State:
    """What a store has of one tenant, or of the schema of shared tables, at one moment."""

    snapshot: Snapshot
    #: Seconds since each doubt began, by writer's id; None if it is not known.
    doubted_for: Mapping[str, float | None]


class Overview(Protocol):
    """An overview of one tag store; :func:`overview_of` makes it."""

    def schemas(self) -> list[str]:
        """Return the schemas of which the store has versions, sorted: tenants, and schemas of
        tables that tenants share.

        :raises StoreUnreachable: if the store can't be reached; so do all other methods.
        """

    def namespaces(self) -> list[str]:
        """Return the namespaces that lie beside one another, sorted."""

    def state(self, schema: str) -> State | None:
        """Return what the store has of a schema.

        :return: None if there is nothing, or nothing that a process would use.
        """

    def evict(self, schema: str, tags: Collection[str], known: Collection[str] | None) -> None:
        """Give tags new versions at once, outside of any transaction.

        :param known: the tags of properties that are not concerned, see :meth:`.TagStore.doubt`;
            all others are evicted, too. None: no others.
        """

    def renew(self, schema: str) -> None:
        """Give a schema a new birth, so that everything stored for it is void."""


def overview_of(tags: TagStore) -> Overview:
    """Return an overview of a tag store."""
    store = tags.store if isinstance(tags, PlacedTagStore) else tags
    if isinstance(store, RedisTagStore):
        return RedisOverview(store.client, store.namespace)
    if isinstance(store, MemoryTagStore):
        return MemoryOverview(store)
    raise TypeError(f'{type(store).__qualname__} gives no overview')


def place_of(schema: str, tag: str) -> str:
    """Return the schema that the versions of a tenant's tag belong to: that of a shared table, or
    the tenant."""
    if tag.startswith(TABLE_TAG):
        return tag.removeprefix(TABLE_TAG).rpartition('.')[0] or schema
    return schema


class MemoryOverview:
    """An overview of a tag store in this process's memory; see :class:`Overview`."""

    def __init__(self, store: MemoryTagStore) -> None:
        self._store = store

    def schemas(self) -> list[str]:
        return self._store.schemas()

    def namespaces(self) -> list[str]:
        return []

    def state(self, schema: str) -> State | None:
        if schema not in self._store.schemas():
            return None
        return State(self._store.snapshot(schema), self._store.doubted_for(schema))

    def evict(self, schema: str, tags: Collection[str], known: Collection[str] | None) -> None:
        if (state := self.state(schema)) is not None:
            _evict(self._store, schema, tags, known, state.snapshot)

    def renew(self, schema: str) -> None:
        if schema in self._store.schemas():
            self._store.renew(schema)


class RedisOverview:
    """An overview of the tag stores on a Redis that have one namespace; see :class:`Overview`."""

    def __init__(self, client: Client, namespace: str) -> None:
        self._client = client
        self._namespace = namespace

    def schemas(self) -> list[str]:
        begin, end = f'{{{self._namespace}:', '}:identities'
        found: set[str] = set()
        for server in self._client.servers():
            names = keys(server, begin, end)
            found |= {name.removeprefix(begin).removesuffix(end) for name in names}
        return sorted(found)

    def namespaces(self) -> list[str]:
        found: set[str] = set()
        for server in self._client.servers():
            found |= {name[1:].partition(':')[0] for name in keys(server, '{', '}:identities')}
        return sorted(found)

    def state(self, schema: str) -> State | None:
        listed = self._identities(schema)
        if not listed:
            return None
        identity = max(listed, key=listed.__getitem__)
        return self._read(schema, identity)

    def evict(self, schema: str, tags: Collection[str], known: Collection[str] | None) -> None:
        for identity in self._identities(schema):
            state = self._read(schema, identity)
            if state is not None:
                _evict(self._store(schema, identity), schema, tags, known, state.snapshot)

    def renew(self, schema: str) -> None:
        for identity in self._identities(schema):
            if self._read(schema, identity) is not None:
                self._store(schema, identity).renew(schema)

    def _store(self, schema: str, identity: str) -> RedisTagStore:
        """Return a store that works with one identity, beside those that processes use."""
        store = RedisTagStore(self._client, self._namespace, quarantined=True)
        store.assume(schema, identity)
        return store

    def _identities(self, schema: str) -> Mapping[str, float]:
        """Return when each identity of a schema was last found; only those that may be read."""
        key = f'{hash_tag(self._namespace, schema)}:identities'
        return read_identities(self._hash(key, READ_FIELDS))

    def _read(self, schema: str, identity: str) -> State | None:
        key = f'{hash_tag(self._namespace, schema)}:tags:{identity}'
        reply = self._hash(key, MAX_FIELDS)
        fields = dict(zip(reply[::2], reply[1::2], strict=True))
        client = self._client.at(key)
        if fields.get(b'key') != key.encode() or not _is_of(client, fields.get(b'run_id')):
            return None  # the next process that uses it bears it anew
        try:
            snapshot, _ = read_state(reply, identity, '')
        except DamagedState:
            return None
        now: Any = client.ask(client.time)
        ages = {
            name[2:].decode(errors='replace'): _age(value, now[0] + now[1] / 1e6)
            for name, value in fields.items() if name.startswith(b'd:')
        }  # fmt: skip
        return State(snapshot, ages)

    def _hash(self, key: str, most: int) -> list[bytes]:
        """Return the fields and values of a hash, alternating; none if it has too many, or is no
        hash."""
        client = self._client.at(key)

        def read() -> list[bytes]:
            try:
                if client.hlen(key) > most:
                    return []
                found: Any = client.hgetall(key)
            except redis.ResponseError as error:
                if str(error).startswith('WRONGTYPE'):
                    return []
                raise
            return [each for pair in found.items() for each in pair]

        return client.ask(read)


def _evict(
    store: TagStore,
    schema: str,
    tags: Collection[str],
    known: Collection[str] | None,
    snapshot: Snapshot,
) -> None:
    """Put tags in doubt, and settle that at once: they get new versions in one step."""
    writer = new_token()
    asked = snapshot.property_tags if known is None else known
    store.doubt(schema, writer, tags, asked, '', {}).result()
    store.settle(schema, writer, None)


def _is_of(client: Client, run_id: bytes | None) -> bool:
    """Return whether a state was written on this server, since it is a primary; also if the server
    does not say who it is. See :mod:`.scripts`."""

    def ask() -> str | None:
        with suppress(NoPermissionError):
            server: Any = client.info('server')
            replication: Any = client.info('replication')
            return f'{server.get("run_id")}-{replication.get("master_replid", "")}'
        return None

    present = client.ask(ask)
    return present is None or (run_id or b'').decode(errors='replace') == present


def _age(doubt: bytes, now: float) -> float | None:
    """Return the seconds since a doubt began; None if it does not say so."""
    try:
        return max(0.0, now - float(json.loads(doubt)['at']))
    except (ValueError, KeyError, TypeError):
        return None
