"""The read path: from the request tier, the process tier, the shared tier, or the creator.

:func:`read` reads an orm-cached property, :func:`read_request_cached` a request-cached one.
The rules for a creator's run are in :mod:`.computing`. This module does not know whether
the tag store and the shared tier are on Redis or in memory.
"""

from __future__ import annotations

from time import perf_counter
from typing import Any

from ..steps import Step, about_to
from ..tiers.claims import Claim
from ..tiers.request import TierEntry
from .computing import learn, refuse_cycle, refuse_variant
from .counting import counted_run
from .expiry import earliest
from .lookup import Lookup
from .properties import Call
from .protocols import ComputingScope, ReadingScope
from .recording import CacheEvent, Tier
from .storing import Computed, judge, store
from .story import of_property


def read(scope: ReadingScope, call: Call) -> Any:
    """Return the value of an orm-cached property; compute it if no tier has it.

    :param scope: a scope whose pending changes are flushed.
    :raises CircularPropertyError: if the property's creator is running already.
    :raises VariantError: if the creator of another property reads it, see :func:`use`.
    """
    scope.ask()
    entry = scope.tier.get(call.key)
    tier: Tier = 'request'
    if entry is None:
        reading = Reading(scope, call)
        entry, tier = reading.entry(), reading.tier
        if tier != 'creator' and scope.cache.auditor is not None:
            scope.cache.auditor.note(scope, call, entry)
    return returned(scope, call, entry, tier)


def returned(scope: ReadingScope, call: Call, entry: TierEntry, tier: Tier) -> Any:
    """Return a value that was read to a view or to the creator that is running; keep it in the
    request tier.

    :param tier: the tier that had it.
    :raises VariantError: see :func:`use`.
    """
    if tier != 'request':
        keep(scope, call, entry)
    return told(scope, call, entry, tier)


def keep(scope: ReadingScope, call: Call, entry: TierEntry) -> None:
    """Keep a value in the request tier, unless its snapshot has ended."""
    if entry.snapshot_number == scope.snapshot_number:
        scope.keep(call, entry)


def told(scope: ReadingScope, call: Call, entry: TierEntry, tier: Tier) -> Any:
    """Record and count that a value was read, and return it; see :func:`returned`."""
    if tier != 'request':
        scope.counts[call.prop.counted.reads[tier]] += 1
        if scope.story is not None:
            scope.story.read(call.prop.where, tier)
    elif scope.weight:
        scope.counts[call.prop.counted.reads[tier]] += scope.weight
    if scope.cache.recorder is not None:
        scope.cache.recorder(CacheEvent.read(scope.schema, call.prop.where, tier, entry.tags))
    return use(scope, call, entry)


def read_request_cached(scope: ReadingScope, call: Call) -> Any:
    """Return the value of a request-cached property; compute it if the scope does not have it.

    Each run of an orm-cached property's creator has request-cached values of its own.

    :param call: the key has the id of the instance.
    :raises CircularPropertyError: if the property's creator is running already.
    :raises VariantError: if the creator of another property reads it, see :func:`use`.
    """
    computing = scope.computing
    # a view's value may hold ORM objects, or show what only the request has in memory
    entries = scope.tier if computing is None else computing.values
    entry = entries.get(call.key)
    if entry is None:
        refuse_cycle(scope.runs, call)
        with scope.run(call) as run:
            value = call.create()
        if computing is not None:
            learn(scope, run)
        entry = TierEntry(
            value=value,
            tags=frozenset(run.tags),
            encoded=None,
            snapshot_number=run.snapshot_number,
            storable=run.why_not_storable() is None,
            expires=run.expires,
            varies=frozenset(run.varies),
            instance=call.instance,
        )
        entries[call.key] = entry
    return use(scope, call, entry)


def use(scope: ComputingScope, call: Call, entry: TierEntry) -> Any:
    """Return the entry's value to a view, or to the creator that is running.

    The run of a creator gets the entry's tags and expiry, and a fresh copy of a value that is
    mutable.

    :raises VariantError: if the entry varies by more than the orm-cached property whose
        creator reads it.
    """
    if not scope.runs:
        return entry.value
    run, prop = scope.runs[-1], call.prop
    run.varies |= entry.varies
    run.expires = earliest(run.expires, entry.expires)
    reader = run.prop.declaration
    if not reader.is_request_cached and not reader.covers(entry.varies, call.instance):
        refuse_variant(scope.cache.settings.audit, run, prop)
    run.tags |= entry.tags
    if not entry.storable or entry.snapshot_number != run.snapshot_number:
        run.taint(f'it used {prop.name!r}, whose dependencies are not known')
    if entry.encoded is None or entry.encoded.immutable or prop.declaration.frozen:
        return entry.value
    # a view may have changed its own copy, and these changes must not be stored for all
    return scope.cache.serializer.decode(entry.encoded.data)


class Reading(Lookup):
    """The read of one value that the request tier does not have: the search for it, and the
    run of the creator if no tier has it."""

    scope: ComputingScope

    def __init__(self, scope: ComputingScope, call: Call) -> None:
        super().__init__(scope, call)
        #: What :meth:`begin` has found.
        self.nearest: TierEntry | None = None
        #: The claim under which the creator runs; None if it runs beside others.
        self.claim: Claim | None = None
        #: False if the creator was run, and its value was not stored.
        self.is_stored = True

    def entry(self) -> TierEntry:
        """Return the value from the nearest tier that has it; otherwise compute it.

        One caller of all processes computes it, and the others wait for its value, for one run
        at most. If the run could not be stored, those who have waited compute side by side.
        A caller whose own value can't be stored neither waits nor lets others wait.

        :raises CircularPropertyError: if the property's creator is running already.
        """
        claim = self.begin()
        if claim is None:
            return self.found_alone()
        if not claim.enter():
            return self.awaited(claim)
        try:
            found = self.in_shared(claim)
            if found is not None:
                return found
            if claim.is_taken:
                return self.awaited(claim)
            with claim.connecting():
                self.scope.connection()
            if not self.is_held(claim):
                claim.leave()  # nobody needs to wait for a value that can't be stored
            return self.compute()
        finally:
            claim.leave()

    def begin(self) -> Claim | None:
        """Look into the process tier; return the claim with which the search goes on.

        :return: None if nobody else needs to be asked: see :meth:`found_alone`.
        :raises CircularPropertyError: if the property's creator is running already.
        """
        scope, tags = self.scope, self.call.tags
        refuse_cycle(scope.runs, self.call)
        if scope.blocks(tags):
            scope.look_again(tags)
            if scope.blocks(tags):
                self._passed_by(scope.why_blocked(tags))
                return None
        self.nearest = self.in_process()
        if self.nearest is not None:
            return None
        is_alone = self.key in self.prop.unstored or scope.is_searching
        if is_alone or scope.blocks(tags | self.unusable):
            self.nearest = self.in_shared()
            return None
        if scope.snapshot().quarantine is not None:
            scope.connection()  # its begin may end the quarantine
            if scope.snapshot().quarantine is not None:
                self._passed_by('quarantine')
                return None
            if scope.blocks(tags):
                self._passed_by(scope.why_blocked(tags))
                return None
        return scope.cache.claim(scope.schema, self.key, tags, scope.snapshot())

    def _passed_by(self, reason: str) -> None:
        """Count that the cache was passed by."""
        self.scope.counts[self.prop.counted.bypassed(reason)] += 1
        if self.scope.story is not None:
            self.scope.story.passed_by(self.prop.where, reason)

    def found_alone(self) -> TierEntry:
        """Return the value that :meth:`begin` has found without a claim; else compute it."""
        return self.nearest or self.compute()

    def awaited(self, claim: Claim) -> TierEntry:
        """Return the value that another caller computes, after waiting for it.

        If there is none then, those who have waited compute side by side.
        """
        about_to(Step.WAIT)
        counts, begun = self.scope.counts, perf_counter()
        with of_property(self.scope.story, 'wait', self.prop.where):
            if claim.is_taken:
                claim.wait_for_others(self.scope.is_in_transaction)
                claim.leave()
                found = None
            else:
                claim.wait_in_process(self.scope.is_in_transaction)
                found = self.in_process()
        counts[self.prop.counted.waits] += 1
        counts[self.prop.counted.wait_seconds] += perf_counter() - begun
        return found or self.in_shared() or self.compute()

    def is_held(self, claim: Claim) -> bool:
        """Return whether the value is computed under a claim, after a transaction has begun.

        The begin can block tags.
        """
        scope = self.scope
        is_blocked = scope.blocks(self.call.tags | self.unusable)
        if is_blocked or scope.snapshot().quarantine is not None or not claim.is_held:
            return False
        self.claim = claim
        if scope.story is not None:
            scope.story.claimed(self.prop.where)
        return True

    def compute(self) -> TierEntry:
        """Run the creator, and store its value if it may be stored.

        :raises SnapshotConflict: if the value is newer than another one that this transaction
            has read, and a tween will try the request again.
        """
        computed = self.computed()
        store(self.scope, [computed])
        self.is_stored = computed.is_stored
        return computed.entry()

    def computed(self) -> Computed:
        """Run the creator, and return its value, which is not stored yet."""
        scope = self.scope
        snapshot = scope.snapshot()
        about_to(Step.CREATOR)
        with counted_run(scope, self.prop) as timed, scope.run(self.call) as run:
            value = self.call.create()
            # within the run, because a value may read the database when it is looked at
            encoded = scope.cache.serializer.encode(value, self.prop.name)
        judge(scope, run)
        return Computed(scope, self, run, encoded, snapshot, self.claim, timed.seconds)
