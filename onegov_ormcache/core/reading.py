"""The read path: from the request tier, the process tier, the shared tier, or the creator.

:func:`read` reads an orm-cached property, :func:`read_request_cached` a request-cached one.
The rules for a creator's run are in :mod:`.computing`. This module does not know whether
the tag store and the shared tier are on Redis or in memory.
"""

from __future__ import annotations

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
from .computing import (
    audit,
    is_storable,
    learn,
    refuse_cycle,
    refuse_variant,
    report_size,
    report_undecodable,
)
from .properties import Property
from .protocols import ComputingScope, LookupScope, ReadingScope
from .recording import CacheEvent, Tier


def read(scope: ReadingScope, instance: Any, prop: Property, key: str) -> Any:
    """Return the value of an orm-cached property; compute it if no tier has it.

    :param scope: a scope whose pending changes are flushed.
    :param instance: the app, the request or other object whose property is read.
    :param key: the property's key with its variant.
    :raises CircularPropertyError: if the property's creator is running already.
    :raises VariantError: if the creator of another property reads it, see :func:`use`.
    """
    scope.ask()
    entry = scope.tier.get(key)
    tier: Tier = 'request'
    if entry is None:
        reading = Reading(scope, instance, prop, key)
        entry, tier = reading.entry(), reading.tier
        if entry.snapshot_number == scope.snapshot_number:
            scope.keep(key, entry)
    if scope.cache.recorder is not None:
        scope.cache.recorder(CacheEvent.read(scope.schema, prop.where, tier, entry.tags))
    return use(scope, prop, entry)


def read_request_cached(scope: ReadingScope, instance: Any, prop: Property, key: Any) -> Any:
    """Return the value of a request-cached property; compute it if the scope does not have it.

    Each run of an orm-cached property's creator has request-cached values of its own.

    :param key: the property's key with the id of the instance.
    :raises CircularPropertyError: if the property's creator is running already.
    :raises VariantError: if the creator of another property reads it, see :func:`use`.
    """
    computing = scope.computing
    # a view's value may hold ORM objects, or show what only the request has in memory
    entries = scope.tier if computing is None else computing.values
    entry = entries.get(key)
    if entry is None:
        refuse_cycle(scope.runs, prop)
        with scope.run(prop) as run:
            value = prop.declaration.create(instance)
        if computing is not None:
            learn(scope, run)
        entry = TierEntry(
            value=value,
            tags=frozenset(run.tags),
            encoded=None,
            snapshot_number=run.snapshot_number,
            storable=run.why_not_storable() is None,
            varies=frozenset(run.varies),
            instance=instance,
        )
        entries[key] = entry
    return use(scope, prop, entry)


def use(scope: ComputingScope, prop: Property, entry: TierEntry) -> Any:
    """Return the entry's value to a view, or to the creator that is running.

    The run of a creator gets the entry's tags, and a fresh copy of a value that is mutable.

    :raises VariantError: if the entry varies by more than the orm-cached property whose
        creator reads it.
    """
    if not scope.runs:
        return entry.value
    run = scope.runs[-1]
    run.varies |= entry.varies
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

    def __init__(self, scope: LookupScope, prop: Property, key: str) -> None:
        self.scope = scope
        self.prop = prop
        self.key = key
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
        if self.scope.blocks(self.prop.tags):
            return False
        slot = self.scope.process_tier.get(self.key)
        return slot is None or not self.holds(slot.stored)

    def holds(self, stored: StoredValue) -> bool:
        """Return whether this transaction may use the stored value.

        It may if the value has not expired, its stamp has all tags of the property and agrees
        with the snapshot, and the scope blocks none of its tags.
        """
        if stored.expires is not None and now() >= stored.expires:
            return False
        return (
            self.prop.tags <= stored.stamp.keys()
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

    def __init__(self, scope: ComputingScope, instance: Any, prop: Property, key: str) -> None:
        super().__init__(scope, prop, key)
        self.instance = instance
        #: The claim under which the creator runs; None if it runs beside others.
        self.claim: Claim | None = None

    def entry(self) -> TierEntry:
        """Return the value from the nearest tier that has it; otherwise compute it.

        One caller of all processes computes it, and the others wait for its value, for one run
        at most. If the run could not be stored, those who have waited compute side by side.
        A caller whose own value can't be stored neither waits nor lets others wait.

        :raises CircularPropertyError: if the property's creator is running already.
        """
        scope, tags = self.scope, self.prop.tags
        refuse_cycle(scope.runs, self.prop)
        if scope.blocks(tags):
            scope.look_again(tags)
            if scope.blocks(tags):
                return self.compute()
        found = self.in_process()
        if found is not None:
            return found
        if self.prop.never_stored or scope.blocks(tags | self.unusable):
            return self.in_shared() or self.compute()
        if scope.snapshot().quarantine is not None:
            scope.connection()  # its begin may end the quarantine
            if scope.snapshot().quarantine is not None or scope.blocks(tags):
                return self.compute()
        claim = scope.cache.claim(scope.schema, self.key, tags, scope.snapshot())
        if not claim.enter():
            about_to(Step.WAIT)
            claim.wait_in_process(scope.is_in_transaction)
            return self.in_process() or self.in_shared() or self.compute()
        try:
            return self.claimed(claim)
        finally:
            claim.leave()

    def claimed(self, claim: Claim) -> TierEntry:
        """Return the value, after no other caller of this process looks for it.

        :param claim: left by the caller.
        """
        scope = self.scope
        found = self.in_shared(claim)
        if found is not None:
            return found
        if claim.is_taken:
            about_to(Step.WAIT)
            claim.wait_for_others(scope.is_in_transaction)
            claim.leave()  # if there is no value yet, those who wait here compute side by side
            return self.in_shared() or self.compute()
        with claim.connecting():
            scope.connection()
        # the transaction may have begun just now, which can block tags
        is_blocked = scope.blocks(self.prop.tags | self.unusable)
        if is_blocked or scope.snapshot().quarantine is not None or not claim.is_held:
            claim.leave()  # nobody needs to wait for a value that can't be stored
        else:
            self.claim = claim
        return self.compute()

    def compute(self) -> TierEntry:
        """Run the creator, and store its value if it may be stored.

        The value is not stored if its dependencies are not known or the run was tainted, if the
        scope blocks one of its tags, if the snapshot has ended, or if the run has read from a
        replica.

        :raises SnapshotConflict: if the value is newer than another one that this transaction
            has read, and a tween will try the request again.
        """
        scope, prop = self.scope, self.prop
        snapshot = scope.snapshot()
        about_to(Step.CREATOR)
        with scope.run(prop) as run:
            value = prop.declaration.create(self.instance)
            # within the run, because a value may read the database when it is looked at
            encoded = scope.cache.serializer.encode(value, prop.name)
        if prop.auto:
            learn(scope, run)
        else:
            audit(scope, run)
        run.tags |= prop.tags
        fits = report_size(scope.cache.settings, prop, encoded)
        # decode the bytes, so that the first caller gets the same value as all others
        value = self.decode(encoded.data)
        tags = frozenset(run.tags)
        storable = is_storable(run)
        prop.never_stored = not (storable and fits)
        storable = storable and not scope.has_strayed
        is_of_this_snapshot = run.snapshot_number == scope.snapshot_number
        is_stored = False
        if is_of_this_snapshot and storable and fits:
            if scope.blocks(tags | run.reads):
                scope.settle(tags | run.reads | {CODE_TAG})
            elif not scope.on_replica:
                stamp = snapshot.stamp(tags | {CODE_TAG})
                lifetime = scope.cache.settings.lifetime
                expires = None if lifetime is None else now() + lifetime
                is_stored = self.store(StoredValue(stamp, encoded, expires), value, snapshot)
        if is_of_this_snapshot:
            if not is_stored:
                scope.torn_pages.computed(prop.tags | run.reads)
            if snapshot.usable:
                # PostgreSQL's conflict detection sees this read, but not what another writer has
                # read from the cache; so the check for write skew must know this read, too
                scope.computed.update(snapshot.stamp(tags | run.reads))
        return TierEntry(
            value=value,
            tags=tags,
            encoded=encoded,
            snapshot_number=run.snapshot_number,
            storable=storable,
            varies=frozenset(prop.declaration.varies),
        )

    def store(self, stored: StoredValue, value: Any, snapshot: Snapshot) -> bool:
        """Store the value for all, if its stamp still holds, and the definitions by which its
        dependencies were found; return whether it was stored.

        If it was not, settle the doubt or the quarantine that may be the reason.
        """
        about_to(Step.FILL)
        holding = snapshot.stamp({CATALOG_TAG})
        try:
            is_stored = self.scope.cache.fill(
                self.scope.schema, self.key, stored, holding, self.claim
            )
        except StoreUnreachable:
            self.scope.store_lost()
            return False
        if is_stored:
            self.keep_in_process(stored, value)
        else:
            self.scope.settle(stored.stamp.keys() | holding.keys())
        return is_stored
