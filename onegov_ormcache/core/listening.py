"""Listens for changes from outside, and evicts the values that depend on them.

The triggers of ``database/triggers.py`` report changes that go around the package (by
``psql``, by another program) when they are committed. In each process with the setting
``listen``, one thread has a connection of its own for these reports. Of all processes that
share a tag store one is active, which an advisory lock decides; when its connection ends,
another takes over. A process that becomes active gives a new birth to all tenants with
triggers, because it can't know what has changed while no process was active.

Such a change is not put in doubt before its commit, so between the commit and the eviction
readers may get stale values. An error does not end the thread, which starts again with a
new connection. This module knows tags; it does not know scopes or tiers.
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
import threading
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, Protocol

from ..database.identity import identity_parameters, identity_query
from ..database.names import CHANNEL, OUTBOX_CHANNEL, ROWS_CHANNEL
from ..database.notes import Relation
from ..database.observer import Observer
from ..database.postgres import Postgres
from ..database.triggers import WATCHED_SCHEMAS
from ..database.urls import parse
from ..errors import ConfigurationError, StoreUnreachable
from ..forks import check, register
from ..tags.snapshot import TagStore, new_token
from .outside_reports import OutsideReports, Reported
from .policies import table_tags
from .protocols import PropertyRegistry
from .recovery import Recovery
from .settings import OrmCacheSettings
from .versions import Versions, identify

if TYPE_CHECKING:
    from psycopg import Connection, Notify


log = logging.getLogger(__name__)

#: Seconds between two checks. The active process checks that its connection is alive, each
#: other process whether it can take over.
INTERVAL = 0.5

#: Seconds to wait after an error: the first time, and at most.
BACKOFF = 0.1, 5.0

#: The first half of the key of the active process's advisory lock; the second half is the
#: hash of the setting ``namespace``.
LOCK = int.from_bytes(b'orm!')

#: Settings with which the server notices within some 10 seconds that a listener's host is
#: gone, so that another process can get the lock.
SETTINGS = """
SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 2; SET tcp_keepalives_count = 3;
SET tcp_user_timeout = 10000
"""

#: Milliseconds after which the listener's operating system gives up a server that does not
#: acknowledge what was sent.
SILENCE = 10_000

#: What ``listen_dsn`` may begin with.
DRIVERS = 'postgresql+psycopg', 'postgresql'


class ListeningCache(Protocol):
    """The part of a cache that listening uses."""

    @property
    def settings(self) -> OrmCacheSettings:
        """The validated settings."""

    @property
    def observer(self) -> Observer:
        """The observer, which knows the tables and the tenants."""

    @property
    def tags(self) -> TagStore:
        """The tag store, which keeps versions."""

    @property
    def versions(self) -> Versions:
        """The tag store, with what follows from new versions."""

    @property
    def registry(self) -> PropertyRegistry:
        """The cache's properties."""

    @property
    def recovery(self) -> Recovery | None:
        """What must be done after an outage; None if nothing can be lost."""


class OutsideChanges:
    """The listener of one process for changes from outside.

    Made with the cache; listens in a thread from :meth:`start` to :meth:`close`.

    :raises ConfigurationError: if the database or its driver has no notifications.
    """

    def __init__(self, cache: ListeningCache) -> None:
        database = cache.observer.database
        if not isinstance(database, Postgres) or database.driver != 'psycopg':
            raise ConfigurationError(
                f'listen is on, and the database is {database.address!r}; listening for changes '
                'from outside needs one engine of postgresql+psycopg://...'
            )
        listen_dsn = cache.settings.listen_dsn
        if listen_dsn is not None and (
            parse(listen_dsn, 'listen_dsn').drivername not in DRIVERS
        ):
            raise ConfigurationError(f'listen_dsn must begin with {DRIVERS[0]}://')
        self._cache = cache
        self._database = database
        self._lock = threading.Lock()
        self._thread: Thread | None = None
        self._file: int | None = None
        #: True while this is the active process, which evicts.
        self.is_active = False
        # True in a forked child that does not listen yet
        self._is_inherited = False

    def start(self) -> None:
        """Start the thread; do nothing if it runs."""
        with self._lock:
            if self._thread is None:
                self._process = os.getpid()
                self._stopping = threading.Event()
                self._stopper, self._stopped = socket.socketpair()
                name = 'onegov_ormcache: changes from outside'
                self._thread = Thread(target=self._run, name=name, daemon=True)
                self._thread.start()
                register(self)

    def resume(self) -> None:
        """Listen in a forked child, whose parent listened; do nothing elsewhere.

        Called when a scope opens. A thread that starts with the fork would not be a green one, if
        the child patches the standard library then.
        """
        if self._is_inherited:
            self._is_inherited = False
            self.start()

    def close(self) -> None:
        """End the thread and its connection; do nothing if it does not run."""
        self._is_inherited = False
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is not None:
                self._stopping.set()
                self._stopper.close()
                thread.join()
                self._stopped.close()

    def after_fork(self) -> None:
        """Forget the parent's thread and connection in a forked child.

        A child does not listen if versions are kept in the memory of its parent.
        """
        if self._thread is None:
            return
        if self._process == os.getpid():
            return  # only the locks are of another kind, and the thread uses its own
        if self._file is not None:
            # close the child's copy of the file, without ending the connection, which is the
            # parent's: with a copy open, the server would not notice the parent's death
            os.close(self._file)
        self._stopper.close()
        self._stopped.close()
        self._lock = threading.Lock()
        self._thread = self._file = None
        self.is_active = False
        self._is_inherited = not self._cache.tags.single_process

    # in the thread

    def _run(self) -> None:
        check()  # waits until all has forgotten the parent
        delay, longest = BACKOFF
        while not self._stopping.is_set():
            try:
                connection = self._database.own_connection(self._cache.settings.listen_dsn)
                self._file = connection.fileno()
                try:
                    listening = Listening(self._cache, connection)
                    while not self._stopping.is_set():
                        with suppress(StoreUnreachable):  # the breaker has logged it
                            self.is_active = listening.look()
                        delay = BACKOFF[0]
                        self._wait(self._file)
                finally:
                    self.is_active = False
                    self._file = None
                    connection.close()
            except Exception:
                message = 'Changes from outside are not heard; trying again in %s s'
                log.warning(message, delay, exc_info=True)
                self._stopping.wait(delay)
                delay = min(2 * delay, longest)

    def _wait(self, file: int) -> None:
        """Wait for data on the connection, for :meth:`close`, or for the next check."""
        with selectors.DefaultSelector() as selector:
            selector.register(file, selectors.EVENT_READ)
            selector.register(self._stopped, selectors.EVENT_READ)
            selector.select(INTERVAL)


class Listening:
    """One connection that listens; at first it only waits to become active.

    Made by the thread of :class:`OutsideChanges` for each new connection, and used until that
    is closed.

    :param connection: a psycopg connection that nobody else uses.
    """

    def __init__(self, cache: ListeningCache, connection: Connection) -> None:
        self._cache = cache
        self._connection = connection
        self._writer = new_token()
        self._is_active = False
        self._reports = OutsideReports()
        connection.autocommit = True
        connection.add_notify_handler(self._hear)
        connection.execute(SETTINGS)
        if cache.recovery is not None:
            connection.execute(f'LISTEN {OUTBOX_CHANNEL}')
        give_up_on_silence(connection.fileno())

    def look(self) -> bool:
        """Evict what was reported if this process is active; else take over if none is.

        :return: True if this process is active now.
        :raises psycopg.Error: if the connection is lost.
        :raises StoreUnreachable: if the tag store can't be reached.
        """
        if self._is_active:
            self._connection.execute('SELECT 1')
            self._read_on()
            self._evict()
        elif self._is_free():
            # at one moment, because the notifications of a transaction belong together
            self._connection.execute(f'LISTEN {CHANNEL}; LISTEN {ROWS_CHANNEL}')
            for (schema,) in self._connection.execute(WATCHED_SCHEMAS).fetchall():
                self._identify(schema)
                self._cache.versions.renew(schema)
            self._is_active = True
            log.info('Changes from outside are heard')
        else:
            self._read_on()
        return self._is_active

    def _is_free(self) -> bool:
        if self._cache.tags.single_process:
            return True
        question = 'SELECT pg_try_advisory_lock(%s, hashtext(%s))'
        answer = self._connection.execute(question, (LOCK, self._cache.settings.namespace))
        return answer.fetchone() == (True,)

    def _hear(self, notify: Notify) -> None:
        self._take(notify.channel, notify.payload)

    def _read_on(self) -> None:
        """Take the notifications that arrived together with an answer.

        They are read already, so the connection's file does not become readable for them.
        """
        while notify := self._connection.pgconn.notifies():
            self._take(notify.relname.decode(), notify.extra.decode())

    def _take(self, channel: str, payload: str) -> None:
        if channel == CHANNEL:
            self._reports.hear_table(payload)
        elif channel == ROWS_CHANNEL:
            try:
                self._reports.hear_rows(payload)
            except ValueError:
                log.warning('Somebody notified the channel %s of %r', channel, payload)
        elif payload == self._cache.settings.namespace and self._cache.recovery is not None:
            self._cache.recovery.hear()

    def _evict(self) -> None:
        heard = self._reports.take()
        changed: defaultdict[str, dict[str, Reported]] = defaultdict(dict)
        for (schema, table), rows in heard.items():
            if self._cache.observer.is_place(schema):
                changed[schema][table] = rows
            else:
                payload = f'{schema}:{table}' if table else schema
                log.warning('Somebody notified the channel %s of %r', CHANNEL, payload)
        try:
            for schema, tables in changed.items():
                self._identify(schema)
                if '' in tables:
                    self._cache.versions.renew(schema)
                else:
                    self._publish(schema, tables)
        except StoreUnreachable:
            self._reports.give_back(heard)  # for the next attempt
            raise

    def _identify(self, schema: str) -> None:
        """Make sure that this process evicts the versions of the database that it listens to."""
        identify(self._cache.tags, schema, partial(self._ask_identity, schema))

    def _ask_identity(self, schema: str) -> str:
        row = self._connection.execute(identity_query(), identity_parameters([schema])).fetchone()
        assert row is not None
        return str(row[0])

    def _publish(self, schema: str, tables: Mapping[str, Reported]) -> None:
        """Give new versions to the tags of these tables and of their changed rows, and to those of
        the function policies that their changes may concern."""
        cache = self._cache
        observer = cache.observer
        names: set[str] = set()
        tags: set[str] = set()
        for table, reported in tables.items():
            of_table = observer.names_of(Relation(schema, table), schema)
            names |= of_table
            for told in ({},) if reported is None else reported:
                for policy, buckets in cache.registry.rows.told(
                    of_table, dict.fromkeys(of_table, told)
                ):
                    tags |= policy.tags_of(buckets)
        tags |= table_tags(names)
        if any(observer.has_table(name) for name in names):
            tags |= cache.registry.function_tags
        cache.tags.publish(schema, self._writer, tags)
        # function policies of other releases and applications, which can't be asked here, may
        # be concerned too
        present = cache.tags.snapshot(schema).property_tags
        unknown = present - cache.registry.known_tags
        if unknown:
            cache.tags.publish(schema, self._writer, unknown)
        cache.versions.tell(schema, tags | unknown)


def give_up_on_silence(file: int) -> None:
    """Make a connection fail if what it sends is not acknowledged for :data:`SILENCE`.

    :param file: the file descriptor of the connection's socket.
    """
    with socket.socket(fileno=os.dup(file)) as connection:
        if connection.family != socket.AF_UNIX and hasattr(socket, 'TCP_USER_TIMEOUT'):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE)
