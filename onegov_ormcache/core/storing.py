"""Values that a run has computed: the verdict whether they may be stored, and the storing.

This module does not know how a value was searched for, nor how its creator was run.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from time import monotonic as now
from time import time

from ..errors import StoreUnreachable
from ..statistics.results import LastRun
from ..steps import Step, about_to
from ..tags.snapshot import CATALOG_TAG, CODE_TAG, Snapshot
from ..tiers.claims import Claim
from ..tiers.process import StoredValue
from ..tiers.request import TierEntry
from ..tiers.serializer import Encoded
from ..tiers.shared import Fill
from .computing import audit, is_storable, learn, report_expired, report_size
from .counting import count_computed
from .expiry import earliest, seconds_left
from .lookup import Lookup
from .protocols import ComputingScope
from .runs import Run


class Computed:
    """A value that a run has computed, before it is stored; made for each of the run's calls.

    :param scope: the scope in which it was computed.
    :param lookup: the search that did not find it.
    :param run: has ended, and was judged.
    :param snapshot: the one that the run began with.
    :param claim: the claim under which it was computed; None if there was none.
    :param seconds: how long the run has taken.
    """

    def __init__(
        self,
        scope: ComputingScope,
        lookup: Lookup,
        run: Run,
        encoded: Encoded,
        snapshot: Snapshot,
        claim: Claim | None,
        seconds: float,
    ) -> None:
        self.lookup = lookup
        self.claim = claim
        self._seconds = seconds
        self._scope = scope
        self._run = run
        self._encoded = encoded
        self.snapshot = snapshot
        prop = lookup.prop
        # decode the bytes, so that the first caller gets the same value as all others
        self.value = lookup.decode(encoded.data)
        self._tags = frozenset(run.tags | lookup.call.tags)
        self._read = run.reads_beside
        left = seconds_left(prop.declaration.expires, self.value, prop.where)
        bounds = [bound for bound in (left, scope.cache.settings.lifetime) if bound is not None]
        moment = now()
        self._expires = earliest(run.expires, *(moment + bound for bound in bounds))
        has_ended = self._expires is not None and self._expires <= moment
        if has_ended:
            report_expired(prop)
        fits = report_size(scope.cache.settings, prop, encoded)
        storable = is_storable(run)
        prop.remember_unstored(lookup.key, not (storable and fits) or has_ended)
        self._storable = storable and not scope.has_strayed
        #: True once it was stored in the shared tier.
        self.is_stored = False
        #: The value with its stamp, if it may be stored.
        self.stored: StoredValue | None = None
        # why it is not stored, to be counted
        self._refused = _why_refused(
            tainted=not storable,
            strayed=scope.has_strayed,
            too_large=not fits,
            expired=has_ended,
            transaction_ended=not self.is_present,
        )
        if not self._refused:
            if scope.blocks(self._tags | self._read):
                self._refused = scope.why_blocked(self._tags | self._read)
                scope.settle(self._tags | self._read | {CODE_TAG})
            elif scope.on_replica:
                self._refused = 'replica'
            else:
                stamp = snapshot.stamp(self._tags | {CODE_TAG})
                self.stored = StoredValue(stamp, encoded, self._expires)

    @property
    def is_present(self) -> bool:
        """True as long as the snapshot lasts with which it was computed."""
        return self._run.snapshot_number == self._scope.snapshot_number

    def was_stored(self, is_stored: bool) -> None:
        """Take notice whether the value was stored, for the checks of the transaction."""
        scope, snapshot = self._scope, self.snapshot
        self.is_stored = is_stored
        if is_stored:
            assert self.stored is not None
            self.lookup.keep_in_process(self.stored, self.value)
        elif not self._refused:
            is_away = self.is_present and not scope.snapshot().reachable
            self._refused = 'outage' if is_away else 'changed meanwhile'
        self._count()
        if self.is_present:
            if not is_stored:
                scope.torn_pages.computed(self.lookup.call.tags | self._read)
            if snapshot.usable:
                # PostgreSQL's conflict detection sees this read, but not what another writer has
                # read from the cache; so the check for write skew must know this read, too
                scope.computed.update(snapshot.stamp(self._tags | self._read))

    def _count(self) -> None:
        """Count what has become of the value."""
        why = (self._run.why_not_storable() or '') if self._refused == 'tainted' else self._refused
        size = len(self._encoded.data)
        run = LastRun(time(), self._seconds, size, tuple(sorted(self._tags)), why)
        count_computed(self._scope, self.lookup.prop, run, self._refused)
        if self._scope.story is not None:
            where = self.lookup.prop.where
            self._scope.story.computed(where, size, self._tags, self._refused, why)

    def entry(self) -> TierEntry:
        """Return the entry of the request tier."""
        return TierEntry(
            value=self.value,
            tags=self._tags,
            encoded=self._encoded,
            snapshot_number=self._run.snapshot_number,
            storable=self._storable,
            expires=self._expires,
            varies=frozenset(self.lookup.prop.declaration.varies),
        )


def _why_refused(**reasons: bool) -> str:
    """Return the first reason that holds, in a word or two; '' if none does."""
    return next((name.replace('_', ' ') for name, holds in reasons.items() if holds), '')


def judge(scope: ComputingScope, run: Run) -> None:
    """Learn the dependencies of a run that has ended, or compare them with the policy.

    :raises AuditError: see :func:`.audit`.
    """
    if run.prop.auto:
        learn(scope, run)
    else:
        audit(scope, run)


def store(scope: ComputingScope, computed: Sequence[Computed]) -> None:
    """Store values for all, if their stamps still hold, and the definitions by which their
    dependencies were found.

    Not stored is a value whose dependencies are not known or whose run was tainted, of which the
    scope blocks a tag, whose snapshot has ended, which has expired, or which was read from a
    replica. If a stamp does not hold, settle the doubt or the quarantine that may be the reason.

    :raises SnapshotConflict: if a value is newer than another one that this transaction has read,
        and a tween will try the request again.
    """
    # almost always one group: a run may have ended the transaction
    groups: dict[int, list[Computed]] = {}
    for each in computed:
        groups.setdefault(id(each.snapshot), []).append(each)
    for group in groups.values():
        stored = _fill(scope, [each for each in group if each.stored and each.is_present])
        for each in group:
            each.was_stored(each in stored)


def _fill(scope: ComputingScope, computed: Sequence[Computed]) -> Collection[Computed]:
    """Store values of one snapshot, as far as their stamps hold; return those that were stored."""
    if not computed:
        return ()
    about_to(Step.FILL)
    fills = [
        Fill(each.lookup.key, each.stored, claim=each.claim)
        for each in computed
        if each.stored is not None
    ]
    holding = computed[0].snapshot.stamp({CATALOG_TAG})
    try:
        are_stored = scope.cache.fill_many(scope.schema, fills, holding)
    except StoreUnreachable:
        scope.store_lost()
        return ()
    refused = [fill for fill, is_stored in zip(fills, are_stored, strict=True) if not is_stored]
    if refused:
        scope.settle(holding.keys() | set().union(*(fill.stored.stamp for fill in refused)))
    return {each for each, is_stored in zip(computed, are_stored, strict=True) if is_stored}
