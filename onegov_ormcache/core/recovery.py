"""Brings the tag store up to date after an outage, in which transactions went on without it.

A transaction that can't put its tags in doubt leaves them in the outbox of its schema, a table of
the same database (the setting ``on_outage='outbox'``). Any process that reaches the store delivers
what it finds there:

- before it uses a cached value, if it was cut off itself, or has left something;
- within a second, if it was not: a thread looks while the process is in use;
- at once, if it hears of it (the setting ``listen``).

A delivery is a doubt that is settled at once: the tags get new versions. To deliver twice is an
eviction too many, which is harmless.

The thread also makes the renewals that are pending (``'continue'`` and ``'expire'``), and is the
first to notice that the store is back. This module does not know transactions or properties.
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from threading import Event, Thread
from typing import NamedTuple
from weakref import finalize, ref

from sqlalchemy import Connection

from ..database.outbox import Outbox
from ..errors import StoreUnreachable
from ..forks import OwnLock, register
from ..tags.snapshot import new_token
from .versions import Versions, identify

log = logging.getLogger(__name__)

#: Seconds between two looks into the outboxes.
INTERVAL = 1.0

#: Seconds between two attempts of the thread to reach a store that is lost: at first, and at most.
#: A process whose thread is late leaves tags in the outbox that others should have heard of.
PROBES = 0.05, 0.5

#: Seconds after which a look is overdue.
LATE = 2 * INTERVAL

#: The number of looks between two attempts at outboxes that could not be read.
RETRIES = 5

#: Seconds that a transaction waits at most for another thread that delivers. Then it does without
#: cached values.
PATIENCE = 0.5


class Progress(NamedTuple):
    """What must have happened before cached values may be used again."""

    #: How often the store was lost, or was back.
    changes: int
    #: How often transactions of this process have left tags in an outbox, or the thread has found
    #: some.
    left: int


class Recovery:
    """Delivers tags from outboxes, and makes pending renewals.

    Made by a cache whose store is Redis, and ended with it; used by all threads.

    :param versions: of the cache.
    :param outboxes: of its databases; none if these have none.
    :param namespace: only tags of this namespace are delivered.
    """

    def __init__(self, versions: Versions, outboxes: Sequence[Outbox], namespace: str) -> None:
        self._versions = versions
        self._store = versions.tags
        self._outboxes = outboxes
        self._namespace = namespace
        self._left = 0
        # the progress up to which all was delivered; None: this process has not looked yet, and
        # another one may have left something and be gone
        self._done: Progress | None = None
        # the schemas whose outboxes can't be read
        self._blocked: frozenset[str] = frozenset()
        self._looking, self._starting, self._counting = OwnLock(), OwnLock(), OwnLock()
        self._glancing = OwnLock(is_reentrant=True)
        self._next_attempt = 0.0
        # when the last look began, or was given up
        self._looked_at = time.monotonic()
        self._ticks = 0
        self._probe = PROBES[0]
        self._is_used = False
        self._is_closed = False
        self._complaints: set[str] = set()
        self._has_thread = False
        self._wake = Event()
        register(self)

    def __repr__(self) -> str:
        state = 'done' if self.is_current else 'to do'
        return f'<Recovery {state} of {self._namespace!r}>'

    def is_done(self, places: Collection[str]) -> bool:
        """Return whether cached values of these places may be used, as far as outages concern.

        If this process was cut off since it last looked, it looks now.

        :raises StoreUnreachable: if the store can't be reached.
        """
        self._is_used = True
        if not self._has_thread:
            self._start()
        if time.monotonic() - self._looked_at > LATE:
            self._look_late()
        if not self.is_current and not self._catch_up():
            return False
        return not self._blocked or self._blocked.isdisjoint(places)

    def leave(
        self,
        connection: Connection,
        outbox: Outbox,
        tags: Mapping[str, Collection[str]],
        known: Collection[str],
    ) -> None:
        """Leave changed tags in outboxes, as a part of the transaction that has changed them.

        :param tags: by place.
        :param known: the property tags whose policies were asked; see :meth:`.TagStore.doubt`.
        :raises StoreUnreachable: if that is not possible, so the transaction must not commit.
        """
        for place, changed in tags.items():
            message = json.dumps({'tags': sorted(changed), 'known': sorted(known)})
            try:
                outbox.leave(connection, place, self._namespace, message)
            except Exception as error:
                raise StoreUnreachable(
                    f'{place}: Redis can not be reached, and what has changed can not be left in '
                    f'the outbox, so the commit is refused: {error}'
                ) from error

    @property
    def is_current(self) -> bool:
        """True if there was no outage, and nothing was found to deliver, since it was done."""
        return self._done == self._progress()

    def left(self) -> None:
        """Take notice that a transaction that has left tags may have committed."""
        self._found()
        self.hear()

    def _found(self) -> None:
        with self._counting.present:
            self._left += 1

    def hear(self) -> None:
        """Look into the outboxes as soon as possible, in the thread."""
        self._is_used = True
        self._wake.set()

    def tick(self) -> None:
        """Look, if this process is in use or something is to be done. The thread calls this."""
        if self._is_used or self._store.is_lost or not self.is_current:
            self._is_used = False
            if self._store.is_lost:
                with suppress(StoreUnreachable):
                    self._store.check(insists=True)  # nobody waits for this thread
            self.look()
            self._ticks += 1
            if self._blocked and self._ticks % RETRIES == 0:
                self._retry_blocked()

    def pause(self) -> float:
        """Return the seconds until the thread calls :meth:`tick` again."""
        if not self._store.is_lost:
            self._probe = PROBES[0]
            return INTERVAL
        pause, self._probe = self._probe, min(self._probe * 1.5, PROBES[1])
        return pause * random.uniform(0.8, 1.2)

    def look(self) -> None:
        """Deliver what is in the outboxes, and make pending renewals; log what goes wrong."""
        try:
            if self._store.is_lost:
                self._store.check()
            self._versions.renew_pending()
            if self.is_current:
                self._look_into()
            if not self.is_current:
                self._catch_up()
            self._complaints.discard('')
        except StoreUnreachable:
            pass  # the breaker has logged it
        except Exception as error:
            self._complain('', error)

    def _look_into(self) -> None:
        """Take notice of tags in the outboxes."""
        with self._glancing.present:  # the connection for that is one thread's at a time
            self._looked_at = time.monotonic()
            if any(each.is_filled(self._namespace) for each in self._outboxes):
                self._found()

    def _look_late(self) -> None:
        """Look before a cached value is used, because the thread has not: nobody has used the
        cache for a while, or the server runs no threads.

        If the database does not answer, cached values are used as before: while it is away, nobody
        can commit.
        """
        glancing = self._glancing.present
        if not glancing.acquire(timeout=PATIENCE):
            self._looked_at = time.monotonic()  # another thread waits for the database
            return
        try:
            if time.monotonic() - self._looked_at > LATE:
                self._look_into()
        except Exception as error:
            self._complain('', error)
        finally:
            glancing.release()

    def _retry_blocked(self) -> None:
        """Try again to deliver what could not be delivered, while others go on."""
        blocked: set[str] = set()
        try:
            for outbox in self._outboxes:
                outbox.deliver(
                    self._namespace,
                    self._evict,
                    lambda schema, _: blocked.add(schema),
                    self._blocked,
                )
            self._blocked = frozenset(blocked)
            self._complaints &= blocked
        except Exception as error:
            self._complain('', error)

    def close(self) -> None:
        """End the thread; make a last attempt at what is still to be done."""
        self._is_closed = True
        self._wake.set()
        if self._has_thread and not self.is_current:
            self.look()
        with suppress(StoreUnreachable):
            self._versions.renew_pending()
        self.forget()

    def forget(self) -> None:
        """Close the connections that are kept to look into the outboxes."""
        for outbox in self._outboxes:
            outbox.close()

    def _progress(self) -> Progress:
        return Progress(self._store.changes, self._left)

    def _catch_up(self) -> bool:
        """Deliver what is in the outboxes, or wait until another thread has; unless that has just
        failed.

        :return: False if cached values must not be used yet.
        """
        if self._store.is_lost:
            # before the lock: who makes the trial waits, and nobody else
            self._store.check()
        looking = self._looking.present
        if time.monotonic() < self._next_attempt or not looking.acquire(timeout=PATIENCE):
            return False
        try:
            if self.is_current:
                return True
            # a loss, or tags that are left, from here on must be looked for again
            progress = self._progress()
            blocked: set[str] = set()

            def failed(schema: str, error: Exception) -> None:
                blocked.add(schema)
                if not isinstance(error, StoreUnreachable):  # else the breaker has logged it
                    self._complain(schema, error)

            for outbox in self._outboxes:
                outbox.deliver(self._namespace, self._evict, failed)
            self._complaints &= blocked
            self._blocked = frozenset(blocked)
            self._done = progress
            return True
        except Exception as error:
            self._next_attempt = time.monotonic() + INTERVAL
            self._complain('', error)
            return False
        finally:
            looking.release()

    def _evict(
        self, place: str, ask_identity: Callable[[], str], messages: Collection[str] | None
    ) -> None:
        """Give the tags in messages new versions; all tags, if the messages can't be read."""
        identify(self._store, place, ask_identity)
        try:
            if messages is None:
                raise ValueError('too many')
            changes = [json.loads(message) for message in messages]
            tags = frozenset(str(tag) for change in changes for tag in change['tags'])
            known = frozenset.intersection(*(frozenset(change['known']) for change in changes))
        except (ValueError, TypeError, KeyError) as error:
            log.warning('%s: all is evicted, because the outbox can not be read: %r', place, error)
            self._versions.renew(place)
            return
        writer = new_token()
        doubted = self._store.doubt(place, writer, tags, known, '', {}).result()
        self._store.settle(place, writer, None)
        self._versions.tell(place, doubted)

    def _complain(self, schema: str, error: Exception) -> None:
        """Log what goes wrong, once until it goes well again."""
        if not self._is_closed and schema not in self._complaints:
            self._complaints.add(schema)
            log.warning(
                'The outboxes%s can not be read, so nobody knows what others have changed while '
                'they could not reach Redis: %s', f' of {schema!r}' if schema else '', error,
            )  # fmt: skip

    # the thread

    def after_fork(self) -> None:
        """Start another thread in a child, at the next use; see :mod:`onegov_ormcache.forks`."""
        self._has_thread = False
        self._wake = Event()
        self._done = None  # what was left since the parent has looked, by others or siblings

    def _start(self) -> None:
        """Start the thread of this process."""
        with self._starting.present:
            if not (self._has_thread or self._is_closed):
                self._has_thread = True
                name = 'onegov_ormcache: recovery'
                arguments = ref(self), self._wake
                finalize(self, self._wake.set)
                with suppress(RuntimeError):  # no more threads: requests look themselves
                    Thread(target=_watch, args=arguments, name=name, daemon=True).start()


def _watch(recovery: Callable[[], Recovery | None], wake: Event) -> None:
    """Let a recovery look again and again, until it is closed or nobody has it any more."""
    pause = INTERVAL
    while True:
        wake.wait(pause)
        wake.clear()
        found = recovery()
        if found is None:
            return
        if not found._is_closed:
            try:
                found.tick()
            except Exception:
                log.exception('The outboxes could not be looked into')
        if found._is_closed:
            found.forget()
            return
        pause = found.pause()
        del found
