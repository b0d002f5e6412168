"""The tag store on Redis: a hash per tenant and identity, changed by Lua scripts alone.

A large hash has a log of its changes beside it, so that a reader that knows an earlier epoch gets
only what has changed, see ``lua/helpers.lua``.

A second hash per tenant lists the identities that its database had, see ``lua/identify.lua``.

:mod:`.scripts` runs them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

import redis
from cachetools import LRUCache

from ..errors import ConfigurationError, SnapshotConflict, StoreFull, StoreUnreachable
from ..forks import OwnLock
from ..redis_client.breaker import Insistence, insisting
from ..redis_client.client import Client, hash_tag
from ..redis_client.inspection import faults
from .scripts import Running, Scripts
from .snapshot import NO_VERSIONS, Snapshot, Stamp, same_schema
from .state import DamagedState, read_changes, read_identities, read_state, read_token

log = logging.getLogger(__name__)

#: A script that changes nothing, and may not be run where the others may not.
CHECK = "return redis.call('DEL', KEYS[1])"

#: The names of the scripts.
SCRIPTS = (
    'snapshot', 'doubt', 'publish', 'end_doubt', 'settle', 'quarantine', 'renew', 'register',
    'fill', 'claim', 'unclaim', 'extend', 'forget', 'identify', 'identities', 'replace',
    'look',
)  # fmt: skip

#: The number of tenants of which a store remembers the last snapshot.
REMEMBERED_TENANTS = 10_000

#: The number of identities that a tenant's list keeps.
KEPT_IDENTITIES = 16

#: The most fields of a list that are read: more than this many identities is no list of ours.
READ_FIELDS = 1000

#: Seconds after which the list drops an identity for which nobody has asked, and Redis the
#: versions of an identity that is not the latest one.
KEPT_SECONDS = 7 * 24 * 3600

#: Stands for the token of a list of identities that is not looked at.
UNLISTED = '-'


#: What every value begins with; the most bytes that it may have; and its stamp.
Expected: TypeAlias = tuple[bytes, int, int]

#: A value's bytes, None if there are none; and milliseconds until it expires.
Found: TypeAlias = tuple[bytes | None, int]

#: The key of a lock, and its holder's token.
Lock: TypeAlias = tuple[str, str]

#: A stamp, a key, the value to store there if the stamp holds, the seconds after which it goes
#: (None: never), and the lock of its computation.
ToFill: TypeAlias = tuple[Stamp, str, bytes, float | None, Lock | None]


class RedisTagStore:
    """A tag store for all processes that use a Redis; made by a cache, lives as long.

    See :class:`~onegov_ormcache.tags.snapshot.TagStore`.

    :param client: made by :func:`onegov_ormcache.redis_client.client.connect`.
    :param namespace: separates applications that share a Redis.
    :param quarantined: True if a birth begins a quarantine, in which nothing is filled.
        A caller that can ask the database must then end it, by :meth:`quarantine`.
    """

    single_process = False

    def __init__(self, client: Client, namespace: str, quarantined: bool) -> None:
        self.client = client
        self.namespace = namespace
        self._quarantined = '1' if quarantined else '0'
        self.scripts = Scripts(client, SCRIPTS)
        self._is_inspected = False
        # True since a value could not be stored, because Redis is full
        self._is_full = False
        self._lock = OwnLock()
        self._last: LRUCache[str, Snapshot] = LRUCache(REMEMBERED_TENANTS)
        # by tenant, the identity that its database has, and the token of the list of identities
        # that this was found out with
        self._known: dict[str, tuple[str, str]] = {}
        # the tenants of which this process has logged that their state could not be read
        self._damaged: LRUCache[str, None] = LRUCache(REMEMBERED_TENANTS)

    @property
    def changes(self) -> int:
        return self.client.changes

    @property
    def is_lost(self) -> bool:
        return self.client.breaker.is_open

    def missed(self) -> None:
        self.client.breaker.missed()

    def check(self, *, insists: bool = False) -> None:
        # a server may answer a PING, and refuse changes or scripts; no such key is ever made
        name = hash_tag(self.namespace, '') + ':check'
        how = Insistence.ALWAYS if insists else Insistence.NEVER
        with suppress(StoreFull), insisting(how):
            client = self.client.at(name)
            client.ask(lambda: client.eval(CHECK, 1, name))
        if not self._is_inspected:
            self._is_inspected = True
            for fault in faults(self.client):
                log.error('Redis (setting redis_url) can not be used as it is: %s', fault.text)

    def inspect(self) -> None:
        for fault in faults(self.client):
            if fault.is_wrong_setting:
                raise ConfigurationError(f'Redis (setting redis_url): {fault.text}')

    def identity(self, schema: str) -> str | None:
        known = self._known.get(schema)
        return known[0] if known else None

    def unidentified(self, schema: str) -> Snapshot:
        key = self._list_key(schema)
        client = self.client.at(key)
        return Snapshot.unidentified(read_token(client.ask(lambda: _listed(client, key))))

    def identify(self, schema: str, identity: str, identities: str) -> None:
        if identities and self._known.get(schema) == (identity, identities):
            return  # another thread was faster
        keys = self._key(schema, identity), self._list_key(schema)
        limits = self._key(schema, ''), str(KEPT_IDENTITIES), str(KEPT_SECONDS)
        try:
            token = read_token(self._run_on(keys, 'identify', identity, identities, *limits))
        except StoreUnreachable:
            self.assume(schema, identity)
            raise
        # without a token, what another thread has found out about this identity stays
        if token or self.identity(schema) != identity:
            self._know(schema, identity, token)

    def follow(self, schema: str, identity: str, identities: str) -> None:
        keys = self._key(schema, identity), self._list_key(schema)
        listed = read_identities(self._run_on(keys, 'identities', str(READ_FIELDS)))
        since = {found: at for found, at in listed.items() if same_schema(found, identity)}
        primary = max(since, key=since.__getitem__) if since else identity
        self._know(schema, primary, identities)

    def assume(self, schema: str, identity: str) -> None:
        self._know(schema, identity, '')

    def snapshot(self, schema: str) -> Snapshot:
        with self._lock.present:
            last = self._last.get(schema)
            identity, identities = self._known.get(schema, (None, UNLISTED))
        # the keys are those of this identity, also if another thread finds another one meanwhile
        keys = self._key(schema, identity), self._list_key(schema)
        for _ in range(2):
            reply = self._run_on(keys, 'snapshot', last.epoch if last else '', identities)
            if reply is None:  # the epoch is still the same
                assert last is not None
                return last
            if len(reply) == 1:  # the list of identities is another one
                return Snapshot.unidentified(read_token(reply[0]))
            damage = None
            try:
                if len(reply) == 3:  # what has changed since the epoch that is known
                    assert last is not None
                    snapshot = read_changes(reply, last, identities)
                else:
                    snapshot, damage = read_state(reply, identity or '', identities)
            except DamagedState as damaged:
                self._log_damage(schema, str(damaged))
                self._run_on(keys, 'replace', damaged.epoch, str(damaged))
                continue
            if damage is not None:
                self._log_damage(schema, damage)
            with self._lock.present:
                self._last[schema] = snapshot
            return snapshot
        raise StoreUnreachable(f'{schema}: another program goes on damaging the key {keys[0]!r}')

    def doubt(
        self,
        schema: str,
        writer: str,
        tags: Collection[str],
        known: Collection[str],
        transaction_key: str,
        read: Stamp,
        computed: Stamp = NO_VERSIONS,
    ) -> SentDoubt:
        change = json.dumps(
            {
                'tags': list(tags), 'known': list(known),
                'read': dict(read), 'computed': dict(computed),
            }
        )  # fmt: skip
        # a commit is asked for even if the server was just lost: another process may have found it
        # again, and use values that this one is about to change
        with insisting(Insistence.UNLESS_STALLED):
            return SentDoubt(schema, self._send('doubt', schema, writer, transaction_key, change))

    def publish(self, schema: str, writer: str, tags: Collection[str]) -> None:
        sent = self._send('publish', schema, writer, json.dumps(list(tags)))
        sent.leave(f'{schema}: committed, but the new versions may be lost')

    def end_doubt(self, schema: str, writer: str) -> None:
        self._run('end_doubt', schema, writer)

    def settle(self, schema: str, writer: str, lease: float | None) -> None:
        self._run('settle', schema, writer, '' if lease is None else str(lease))

    def quarantine(self, schema: str, birth: str, waiting: Collection[str]) -> None:
        self._run('quarantine', schema, birth, ','.join(waiting))

    def register(self, schema: str, tags: Collection[str]) -> None:
        self._run('register', schema, json.dumps(list(tags)))

    def renew(self, schema: str) -> None:
        self._run('renew', schema)

    def forget(self, schema: str, interval: float) -> None:
        self._run('forget', schema, str(interval))

    def fill_many(self, schema: str, values: Sequence[ToFill]) -> list[bool]:
        """Store values, each if its stamp holds.

        See :class:`onegov_ormcache.tiers.shared.RedisFills`. Each value is stored as it is, under
        a full key of Redis, which begins with the tenant's hash tag. Its lock is given back in
        any case.

        :return: for each value, False if it was not stored, because its stamp does not hold, a
            property's tag in it is not registered, the tenant is new or in quarantine, or Redis
            is full.
        """
        keys: list[str] = []
        arguments: list[str | bytes] = []
        for stamp, key, value, ttl, lock in values:
            name, token = lock or (key, '')
            keys += key, name
            milliseconds = '' if ttl is None else _milliseconds(ttl)
            arguments += json.dumps(dict(stamp)), value, milliseconds, token
        try:
            reply = self._run('fill', schema, *arguments, more_keys=tuple(keys))
        except StoreFull as error:
            if not self._is_full:
                log.warning('Values are not stored: %s', error)
            self._is_full = True
            # the script was not even begun
            self.unclaim_many(schema, [lock for *_, lock in values if lock is not None])
            return [False] * len(values)
        are_stored = list(map(bool, reply))
        self._is_full = self._is_full and not any(are_stored)
        return are_stored

    def claim_many(
        self,
        schema: str,
        values: Sequence[tuple[str, Lock]],
        lifetime: float,
        elsewhere: Stamp,
        expected: Expected,
    ) -> list[tuple[bool | None, Found]]:
        """Look for values, and lock the computation of each that is not there, or not valid now.

        See :class:`onegov_ormcache.tiers.claims.RedisClaims`.
        """
        magic, most, most_of_stamp = expected
        keys = [each for key, lock in values for each in (key, lock[0])]
        arguments: list[str | bytes] = [
            magic, str(most), str(most_of_stamp), _milliseconds(lifetime),
            json.dumps(dict(elsewhere)),
        ]  # fmt: skip
        arguments += [token for _, (_, token) in values]
        reply = self._run('claim', schema, *arguments, more_keys=tuple(keys))
        return [
            ((None, True, False)[state], (value, left))
            for state, value, left in zip(reply[::3], reply[1::3], reply[2::3], strict=True)
        ]

    def look(self, schema: str, keys: Sequence[str], expected: Expected) -> list[Found]:
        """Return the values of keys, in their order.

        See :class:`onegov_ormcache.tiers.shared.RedisFills`.
        """
        magic, most, _ = expected
        found = self._run('look', schema, magic, str(most), more_keys=tuple(keys))
        values, timed = found[: len(keys)], found[len(keys) :]
        left = dict(zip(timed[::2], timed[1::2], strict=True))
        return [(value, left.get(number, -1)) for number, value in enumerate(values)]

    def unclaim_many(self, schema: str, locks: Sequence[Lock]) -> None:
        """Give the locks of computations back, those that the caller still has."""
        if locks:
            names = tuple(name for name, _ in locks)
            self._run('unclaim', schema, *(token for _, token in locks), more_keys=names)

    def extend(self, schema: str, lock: Lock, lifetime: float) -> bool:
        """Let the lock of a computation last longer; return False if it was lost."""
        name, token = lock
        arguments = (token, _milliseconds(lifetime))
        return bool(self._run('extend', schema, *arguments, more_keys=(name,)))

    def holder(self, lock: Lock) -> bytes | None:
        """Return the token of the lock's present holder; None if there is none."""
        client = self.client.at(lock[0])
        found: Any = client.ask(lambda: client.get(lock[0]))
        return None if found is None else bytes(found)

    def _run(
        self, name: str, schema: str, *arguments: str | bytes, more_keys: tuple[str, ...] = ()
    ) -> Any:
        keys = (self._key(schema, self.identity(schema)), *more_keys)
        return self._run_on(keys, name, *arguments)

    def _run_on(self, keys: tuple[str, ...], name: str, *arguments: str | bytes) -> Any:
        return self.scripts.run(name, keys, self._quarantined, *arguments)

    def _send(self, name: str, schema: str, *arguments: str) -> Running:
        keys = (self._key(schema, self.identity(schema)),)
        return self.scripts.send(name, keys, self._quarantined, *arguments)

    def _know(self, schema: str, identity: str, identities: str) -> None:
        with self._lock.present:
            self._known[schema] = identity, identities
            # its token is that of an earlier list
            self._last.pop(schema, None)

    def _log_damage(self, schema: str, damage: str) -> None:
        """Log, once for each tenant, that its state was replaced."""
        with self._lock.present:
            if schema in self._damaged:
                return
            self._damaged[schema] = None
        log.warning(
            '%s: the key of its versions on Redis was damaged (%.200r). All that was stored for '
            'the tenant is void now: does another program use the same keys?', schema, damage,
        )  # fmt: skip

    def _key(self, schema: str, identity: str | None) -> str:
        """Return the key of a tenant's versions; None if this process was told no identity."""
        key = hash_tag(self.namespace, schema) + ':tags'
        return key if identity is None else f'{key}:{identity}'

    def _list_key(self, schema: str) -> str:
        """Return the key of a tenant's list of identities."""
        return hash_tag(self.namespace, schema) + ':identities'


def _milliseconds(seconds: float) -> str:
    return str(max(1, int(seconds * 1000)))


class SentDoubt:
    """A doubt that was sent; see :class:`~onegov_ormcache.tags.snapshot.DoubtAnswer`."""

    def __init__(self, schema: str, running: Running) -> None:
        self._schema = schema
        self._running = running

    def result(self) -> frozenset[str]:
        done, *named = self._running.result()
        if not done:
            tag = _readable(named[0])
            raise SnapshotConflict(f'{self._schema}: {tag} has changed since it was read', tag)
        return frozenset(map(_readable, named))

    def leave(self) -> None:
        self._running.leave(f'{self._schema}: a doubt was not put')


def _listed(client: Client, key: str) -> Any:
    """Return the token of a list of identities; None if there is no such list."""
    try:
        return client.hget(key, 'token')
    except redis.ResponseError as error:
        if str(error).startswith('WRONGTYPE'):
            return None
        raise


def _readable(tag: bytes) -> str:
    """Return a tag as text. One that is none is not used: the next snapshot finds the damage."""
    return tag.decode(errors='backslashreplace')
