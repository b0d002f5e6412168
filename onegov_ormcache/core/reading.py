"""The read path: from the request tier, the process tier, the shared tier, or the creator.

:func:`read` reads an orm-cached property, :func:`read_request_cached` a request-cached one.
The rules for a creator's run are in :mod:`.computing`. This module does not know whether
the tag store and the shared tier are on Redis or in memory.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from time import monotonic as now
from typing import Any

from ..errors import StoreUnreachable, UndecodableValue, ValueNotCacheable
from ..steps import Step, about_to
from ..tags.snapshot import CATALOG_TAG, CODE_TAG, Snapshot
from ..tiers.claims import Claim
from ..tiers.frozen import freeze
from ..tiers.process import Slot, StoredValue
from ..tiers.request import TierEntry
from ..tiers.serializer import Encoded
from ..tiers.shared import Fill
from .computing import (
    audit,
    is_storable,
    learn,
    refuse_cycle,
    refuse_variant,
    report_expired,
    report_size,
    report_undecodable,
)
from .expiry import earliest, seconds_left
from .properties import Call
from .protocols import ComputingScope, LookupScope, ReadingScope
from .recording import CacheEvent, Tier
from .runs import Run


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
    return returned(scope, call, entry, tier)


def returned(scope: ReadingScope, call: Call, entry: TierEntry, tier: Tier) -> Any:
    """Return a value that was read to a view or to the creator that is running.

    :param tier: the tier that had it.
    :raises VariantError: see :func:`use`.
    """
    if tier != 'request' and entry.snapshot_number == scope.snapshot_number:
        scope.keep(call, entry)
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
    if not reader.is_request_cached and not entry.varies <= set(reader.varies):
        refuse_variant(run.prop, prop)
    run.tags |= entry.tags
    if not entry.storable or entry.snapshot_number != run.snapshot_number:
        run.taint(f'it used {prop.name!r}, whose dependencies are not known')
    if entry.encoded is None or entry.encoded.immutable or prop.declaration.frozen:
        return entry.value
    # a view may have changed its own copy, and these changes must not be stored for all
    return scope.cache.serializer.decode(entry.encoded.data)


class Lookup:
    """The search for one value in the process tier and the shared tier.

    Made for one read or prefetch of a value that the request tier does not have.
    """

    def __init__(self, scope: LookupScope, call: Call) -> None:
        self.scope = scope
        self.call = call
        self.prop = call.prop
        self.key: str = call.key
        #: The tier that had the value; ``'creator'`` if none had it.
        self.tier: Tier = 'creator'
        #: The tags of the values that were found and that this transaction may not use.
        self.unusable: frozenset[str] = frozenset()

    def in_process(self) -> TierEntry | None:
        """Return the value from the process tier; None if it has none that this transaction
        may use."""
        about_to(Step.PROCESS_TIER)
        slot = self.scope.process_tier.get(self.key)
        if slot is None:
            return None
        if not self.holds(slot.stored):
            self.unusable |= slot.stored.stamp.keys()
            return None
        shared = self._is_immutable(slot.stored.encoded)
        value = slot.value if shared else self.decode(slot.stored.encoded.data)
        self.tier = 'process'
        return self._found(slot.stored, value)

    def in_shared(self, claim: Claim | None = None) -> TierEntry | None:
        """Return the value from the shared tier; None if it has none that this transaction
        may use.

        :param claim: claims the computation of a value that is not there.
        """
        about_to(Step.SHARED_TIER)
        try:
            if claim is not None:
                stored = claim.look()
            else:
                stored = self.scope.cache.shared_tier.get(self.scope.schema, self.key)
        except StoreUnreachable:
            self.scope.store_lost()
            return None
        return None if stored is None else self.take(stored)

    def take(self, stored: StoredValue) -> TierEntry | None:
        """Take a value that the shared tier has: keep it in the process tier and return it.

        Returns None if this transaction may not use it, or if it can't be decoded.
        """
        if not self.holds(stored):
            self.unusable |= stored.stamp.keys()
            return None
        try:
            value = self.decode(stored.encoded.data)
        except (UndecodableValue, ValueNotCacheable, RecursionError) as error:
            report_undecodable(self.prop, error)
            return None
        self.keep_in_process(stored, value)
        self.tier = 'shared'
        return self._found(stored, value)

    def is_missing(self) -> bool:
        """Return True if this transaction may use a cached value, and the process tier has none
        that it may use."""
        if self.scope.blocks(self.call.tags):
            return False
        slot = self.scope.process_tier.get(self.key)
        return slot is None or not self.holds(slot.stored)

    def holds(self, stored: StoredValue) -> bool:
        """Return whether this transaction may use the stored value.

        It may if the value has not expired, its stamp has all tags of the call and agrees with
        the snapshot, and the scope blocks none of its tags.
        """
        if stored.expires is not None and now() >= stored.expires:
            return False
        return (
            self.call.tags <= stored.stamp.keys()
            and self.scope.snapshot().agrees(stored.stamp)
            and not self.scope.blocks(stored.stamp.keys())
        )

    def keep_in_process(self, stored: StoredValue, value: Any) -> None:
        """Keep a value of the shared tier in the process tier, too."""
        held = value if self._is_immutable(stored.encoded) else None
        self.scope.process_tier[self.key] = Slot(stored, held)

    def decode(self, data: bytes) -> Any:
        """Decode a value, and make it immutable if the property is declared ``frozen``."""
        value = self.scope.cache.serializer.decode(data)
        return freeze(value, self.prop.name) if self.prop.declaration.frozen else value

    def _found(self, stored: StoredValue, value: Any) -> TierEntry:
        self.scope.torn_pages.found(stored.stamp)
        self.scope.returned.update(stored.stamp)
        return TierEntry(
            value=value,
            tags=frozenset(stored.stamp.keys() - {CODE_TAG}),
            encoded=stored.encoded,
            snapshot_number=self.scope.snapshot_number,
            storable=True,
            expires=stored.expires,
            varies=frozenset(self.prop.declaration.varies),
        )

    def _is_immutable(self, encoded: Encoded) -> bool:
        """Return whether requests can share the value, because it is immutable or the property
        is declared ``frozen``."""
        return encoded.immutable or self.prop.declaration.frozen


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
            if scope.snapshot().quarantine is not None or scope.blocks(tags):
                return None
        return scope.cache.claim(scope.schema, self.key, tags, scope.snapshot())

    def found_alone(self) -> TierEntry:
        """Return the value that :meth:`begin` has found without a claim; else compute it."""
        return self.nearest or self.compute()

    def awaited(self, claim: Claim) -> TierEntry:
        """Return the value that another caller computes, after waiting for it.

        If there is none then, those who have waited compute side by side.
        """
        about_to(Step.WAIT)
        if claim.is_taken:
            claim.wait_for_others(self.scope.is_in_transaction)
            claim.leave()
            return self.in_shared() or self.compute()
        claim.wait_in_process(self.scope.is_in_transaction)
        return self.in_process() or self.in_shared() or self.compute()

    def is_held(self, claim: Claim) -> bool:
        """Return whether the value is computed under a claim, after a transaction has begun.

        The begin can block tags.
        """
        scope = self.scope
        is_blocked = scope.blocks(self.call.tags | self.unusable)
        if is_blocked or scope.snapshot().quarantine is not None or not claim.is_held:
            return False
        self.claim = claim
        return True

    def compute(self) -> TierEntry:
        """Run the creator, and store its value if it may be stored.

        :raises SnapshotConflict: if the value is newer than another one that this transaction
            has read, and a tween will try the request again.
        """
        computed = self.computed()
        store(self.scope, [computed])
        return computed.entry()

    def computed(self) -> Computed:
        """Run the creator, and return its value, which is not stored yet."""
        scope = self.scope
        snapshot = scope.snapshot()
        about_to(Step.CREATOR)
        with scope.run(self.call) as run:
            value = self.call.create()
            # within the run, because a value may read the database when it is looked at
            encoded = scope.cache.serializer.encode(value, self.prop.name)
        judge(scope, run)
        return Computed(self, run, encoded, snapshot)


class Computed:
    """A value that a run has computed, before it is stored; made for each of the run's calls.

    :param run: has ended, and was judged.
    :param snapshot: the one that the run began with.
    """

    def __init__(self, reading: Reading, run: Run, encoded: Encoded, snapshot: Snapshot) -> None:
        self.reading = reading
        self._scope = scope = reading.scope
        self._run = run
        self._encoded = encoded
        self.snapshot = snapshot
        prop = reading.prop
        # decode the bytes, so that the first caller gets the same value as all others
        self.value = reading.decode(encoded.data)
        self._tags = frozenset(run.tags | reading.call.tags)
        self._read = run.reads_beside
        self._is_present = run.snapshot_number == scope.snapshot_number
        left = seconds_left(prop.declaration.expires, self.value, prop.where)
        bounds = [bound for bound in (left, scope.cache.settings.lifetime) if bound is not None]
        moment = now()
        self._expires = earliest(run.expires, *(moment + bound for bound in bounds))
        has_ended = self._expires is not None and self._expires <= moment
        if has_ended:
            report_expired(prop)
        fits = report_size(scope.cache.settings, prop, encoded)
        storable = is_storable(run)
        prop.remember_unstored(reading.key, not (storable and fits) or has_ended)
        self._storable = storable and not scope.has_strayed
        #: The value with its stamp, if it may be stored.
        self.stored: StoredValue | None = None
        if self._is_present and self._storable and fits and not has_ended:
            if scope.blocks(self._tags | self._read):
                scope.settle(self._tags | self._read | {CODE_TAG})
            elif not scope.on_replica:
                stamp = snapshot.stamp(self._tags | {CODE_TAG})
                self.stored = StoredValue(stamp, encoded, self._expires)

    def was_stored(self, is_stored: bool) -> None:
        """Take notice whether the value was stored, for the checks of the transaction."""
        scope, snapshot = self._scope, self.snapshot
        if is_stored:
            assert self.stored is not None
            self.reading.keep_in_process(self.stored, self.value)
        if self._is_present:
            if not is_stored:
                scope.torn_pages.computed(self.reading.call.tags | self._read)
            if snapshot.usable:
                # PostgreSQL's conflict detection sees this read, but not what another writer has
                # read from the cache; so the check for write skew must know this read, too
                scope.computed.update(snapshot.stamp(self._tags | self._read))

    def entry(self) -> TierEntry:
        """Return the entry of the request tier."""
        return TierEntry(
            value=self.value,
            tags=self._tags,
            encoded=self._encoded,
            snapshot_number=self._run.snapshot_number,
            storable=self._storable,
            expires=self._expires,
            varies=frozenset(self.reading.prop.declaration.varies),
        )


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
        stored = _fill(scope, [each for each in group if each.stored is not None])
        for each in group:
            each.was_stored(each in stored)


def _fill(scope: ComputingScope, computed: Sequence[Computed]) -> Collection[Computed]:
    """Store values of one snapshot, as far as their stamps hold; return those that were stored."""
    if not computed:
        return ()
    about_to(Step.FILL)
    fills = [
        Fill(each.reading.key, each.stored, claim=each.reading.claim)
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
