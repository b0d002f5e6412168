"""The auditor: recomputes a share of all hits from the database, and counts disagreements.

So the consistency of a site that runs is a number. A policy that misses a change, a writer that no
witness sees and a database that was replaced all show in it.

A hit is noted when a view reads it, and recomputed when the scope of the view has closed: in a
scope of its own, with another session and another transaction, which is rolled back. So nothing of
it reaches the view: no error, no lock, no write of the creator, no time before the response is
sent. The scope of the view has given its connection back then, so a pool without a free connection
can't stop both. An enclosing scope that is in a transaction has not, and may have locks: nothing
is recomputed then.

A value and its recomputation must be equal if no commit lies between them. A snapshot that is
taken after the recomputation has ended tells that: the tags of the value still have the versions
of its stamp, and none is in doubt. A commit that the recomputation shows, and the value does not,
has put its tags in doubt before, and given them new versions since. Otherwise nothing is said of
the hit, and it is no check. What the creator reads of other properties is computed from the
database, too.

This module knows the scope and the stamp of a hit. It does not know how a value is found or
stored.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import NamedTuple, Protocol

from cachetools import TTLCache

from ..forks import OwnLock, register
from ..statistics.fields import Counts
from ..tags.snapshot import CODE_TAG, Snapshot, Stamp
from ..tiers.comparison import Likeness, compare
from ..tiers.request import TierEntry
from ..tiers.serializer import Encoded
from .computing import log_once
from .descriptors import OrmCacheDescriptor
from .properties import Call, Property
from .protocols import AuditedScope, ScopeCache
from .runs import Run
from .scope import RequestScope, scopes_around

log = logging.getLogger(__name__)

#: The most hits of one scope that are recomputed.
MAX_HITS = 10

#: Seconds after which a disagreement about the same value is logged again.
LOGGED_AGAIN = 60.0

#: The most values of which is remembered that a disagreement was logged.
MAX_LOGGED = 1000


class Verdict(StrEnum):
    """What came of the audit of one hit."""

    AGREED = 'agreed'
    #: The value is not what the database gives.
    DISAGREED = 'disagreed'
    #: It has the same items in another order.
    REORDERED = 'reordered'
    #: It could not be compared: a tag has changed or is in doubt, or it ends by itself.
    UNTOLD = 'untold'
    #: The creator has raised an error, or its value could not be encoded.
    FAILED = 'failed'


class AuditedCache(ScopeCache, Protocol):
    """The part of a cache that its auditor uses."""

    def is_conflict(self, error: BaseException) -> bool:
        """Return whether an error is a conflict that a new attempt may resolve."""


class Hit(NamedTuple):
    """A hit that will be recomputed."""

    call: Call
    #: The versions of the value's tags.
    stamp: Stamp
    encoded: Encoded


class AuditScope(RequestScope):
    """The scope of one recomputation; made and closed by the auditor."""

    is_counted = False

    def __init__(self, cache: ScopeCache, schema: str) -> None:
        super().__init__(cache, schema)
        #: The properties that were computed in it.
        self.computed_properties: set[Property] = set()

    @contextmanager
    def run(self, *calls: Call) -> Iterator[Run]:
        self.computed_properties.add(calls[0].prop)
        with super().run(*calls) as run:
            yield run

    def _end_snapshot(self) -> None:
        self.counts.clear()
        super()._end_snapshot()


class Auditor:
    """Recomputes hits. Made by a cache whose setting ``check_hits`` is above 0; lives as long.

    :param share: the share of the hits that is recomputed, above 0 and up to 1.
    """

    def __init__(self, cache: AuditedCache, share: float) -> None:
        self._cache = cache
        self._share = share
        self._lock = OwnLock()
        # the values that are recomputed now: a crowd that reads one needs one recomputation
        self._present: set[tuple[str, str]] = set()
        self._logged: TTLCache[tuple[str, str], None] = TTLCache(MAX_LOGGED, LOGGED_AGAIN)
        self._is_closed = False
        register(self)

    def __repr__(self) -> str:
        return f'<Auditor of {self._share:.4%} of all hits>'

    def after_fork(self) -> None:
        """Forget what threads of the parent recompute."""
        self._present = set()

    def close(self) -> None:
        """Recompute nothing any more: the cache is about to close its connections."""
        self._is_closed = True

    # the hits

    def note(self, scope: AuditedScope, call: Call, entry: TierEntry) -> None:
        """Take notice of a hit of the process tier or the shared tier, which a view has read.

        One hit of many is kept, and recomputed when the scope has closed. What a creator reads is
        not: its own value will be.
        """
        if random.random() >= self._share or scope.runs or entry.encoded is None:
            return
        if len(scope.audited) >= MAX_HITS or call.prop.declaration.expires is not None:
            return
        # it is the value's own stamp, with which the snapshot agrees
        stamp = scope.snapshot().stamp(entry.tags | {CODE_TAG})
        scope.audited = (*scope.audited, Hit(call, stamp, entry.encoded))

    def recompute(self, scope: AuditedScope) -> None:
        """Recompute the hits of a scope that has closed. Raises no error but those that end the
        thread."""
        hits, scope.audited = scope.audited, ()
        # for a connection or a lock of this thread's own, which it would wait for in vain
        must_wait = any(around.transactions for around in scopes_around(self._cache))
        for hit in hits:
            key = scope.schema, hit.call.key
            with self._lock.present:
                if self._is_closed or key in self._present:
                    continue
                self._present.add(key)
            try:
                verdict = Verdict.UNTOLD if must_wait else self._verdict(scope.schema, hit)
            except Exception as error:
                verdict = self._failed(hit, error)
            finally:
                with self._lock.present:
                    self._present.discard(key)
            log.debug('%s of %s: audited: %s', hit.call.prop.where, scope.schema, verdict)
            counts: Counts = {hit.call.prop.counted.audited(verdict): 1}
            self._cache.statistics.take(scope.schema, counts)

    def _verdict(self, schema: str, hit: Hit) -> Verdict:
        scope = AuditScope(self._cache, schema)
        with scope.opened():
            scope.connection()  # first, because a begin may take another snapshot
            if scope.on_replica or not self._is_same(scope, hit.call):
                return Verdict.UNTOLD
            # this saves a run; what counts is the snapshot after it
            if scope.blocks(hit.stamp.keys()) or not self._holds(scope.snapshot(), hit.stamp):
                return Verdict.UNTOLD
            scope.store_lost()  # from now on, each value is computed
            scope.story = None  # and not because the store is away
            with scope.run(hit.call):
                value = hit.call.create()
                encoded = self._cache.serializer.encode(value, hit.call.prop.name)
            if any(prop.declaration.expires is not None for prop in scope.computed_properties):
                return Verdict.UNTOLD  # it may depend on the time
        if not self._holds(self._cache.snapshot(schema), hit.stamp):
            return Verdict.UNTOLD
        likeness = compare(self._cache.serializer, hit.encoded.data, encoded.data)
        if likeness is Likeness.EQUAL:
            return Verdict.AGREED
        if likeness is Likeness.REORDERED:
            log_once(
                hit.call.prop,
                f'{hit.call.prop.where} has cached items in another order than the database gives '
                'now: give its query an ORDER BY; if it has one, its policy misses a change',
                subject='order',
            )
            return Verdict.REORDERED
        self._tell(schema, hit.call)
        return Verdict.DISAGREED

    def _is_same(self, scope: RequestScope, call: Call) -> bool:
        """Return whether the instance still asks for the same value: its role, or what else the
        value differs by, may have changed since."""
        declared = call.prop.declaration
        assert isinstance(declared, OrmCacheDescriptor)
        again = declared.call(scope, call.prop, call.instance, call.arguments)
        return bool(again.key == call.key)

    def _holds(self, snapshot: Snapshot, stamp: Stamp) -> bool:
        """Return whether no tag of a value has changed, or is about to."""
        if not snapshot.usable or snapshot.quarantine is not None:
            return False
        return snapshot.agrees(stamp) and snapshot.in_doubt.isdisjoint(stamp.keys())

    def _tell(self, schema: str, call: Call) -> None:
        """Log a disagreement about a value, unless it was logged just now."""
        with self._lock.present:
            is_logged = (schema, call.key) in self._logged
            if not is_logged:
                self._logged[schema, call.key] = None
        if not is_logged:
            log.error(
                '%s of %s: the cached value is not what the database gives, and no change of what '
                'it depends on was seen; its key is %r',
                call.prop.where, schema, call.key,
            )  # fmt: skip

    def _failed(self, hit: Hit, error: Exception) -> Verdict:
        if self._is_closed or self._cache.is_conflict(error):
            return Verdict.UNTOLD
        # an error may have values in its text
        log_once(
            hit.call.prop,
            f'{hit.call.prop.where} could not be recomputed, to check a hit: '
            f'{type(error).__name__}',
        )
        return Verdict.FAILED
