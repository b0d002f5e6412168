"""The read path: from the request tier, the process tier, the shared tier, or the creator.

:func:`read` is what an orm-cached property does when the request tier does not
have its value, :func:`read_request_cached` the same for a request-cached one.
"""

from __future__ import annotations

import logging
from time import time as now
from typing import TYPE_CHECKING, Any

import morepath
from dogpile.lock import Lock, NeedRegenerationException
from sqlalchemy import Select
from sqlalchemy.orm import Query

from ..database.signals import tables_of
from ..errors import (
    AuditError,
    CircularPropertyError,
    StoreUnreachable,
    UndecodableValue,
    VariantError,
)
from ..steps import Step, about_to
from ..tags.snapshot import TABLE_TAG
from ..tiers.frozen import freeze
from ..tiers.process import Slot, StoredValue
from ..tiers.request import TierEntry
from ..tiers.serializer import Encoded
from .policies import table_tags
from .recording import Event, Tier
from .scope import RequestScope, Run

if TYPE_CHECKING:
    from .descriptors import Property

log = logging.getLogger('onegov_ormcache')

#: What dogpile's lock calls the time of a creation; the stamps decide, and not it.
CREATED = 1.0


def read(scope: RequestScope, instance: Any, prop: Property, key: str) -> Any:
    """The value of an orm-cached property, computed if need be.

    :param key: the property's key with its variant.
    """
    entry = scope.tier.get(key)
    tier: Tier = 'request'
    if entry is None:
        reading = Reading(scope, instance, prop, key)
        entry, tier = reading.entry(), reading.tier
        if entry.era == scope.era:
            scope.keep(key, entry)
    if scope.runtime.recorder is not None:
        scope.runtime.recorder(Event.read(scope.schema, prop.where, tier, entry.tags))
    return use(scope, prop, entry)


def read_request_cached(scope: RequestScope, instance: Any, prop: Property, key: Any) -> Any:
    """The value of a request-cached property, computed if need be."""
    entry = scope.tier.get(key)
    if entry is None:
        refuse_cycle(scope, prop)
        with scope.run(prop) as run:
            value = prop.descriptor.create(instance)
        learn(scope, run)
        storable = why_not_storable(run) is None and not run.through_another
        entry = TierEntry(
            value, frozenset(run.tags), None, run.era, storable, frozenset(run.varies), instance
        )
        scope.keep(key, entry)
    return use(scope, prop, entry)


def use(scope: RequestScope, prop: Property, entry: TierEntry) -> Any:
    """The entry's value, for a view, or for the creator that is running."""
    if not scope.runs:
        return entry.value
    run = scope.runs[-1]
    run.varies |= entry.varies
    if not run.prop.is_request_cached and not entry.varies <= set(run.prop.descriptor.varies):
        refuse_variant(run.prop, prop)
    run.tags |= entry.tags
    if not entry.storable or entry.era != run.era:
        run.unstorable = f'it used {prop.name!r}, of which the dependencies are not known'
    if entry.encoded is None or entry.encoded.immutable or prop.descriptor.frozen:
        return entry.value
    # what a view did to its own copy must not be stored for all
    return scope.runtime.serializer.decode(entry.encoded.data)


class Reading:
    """One look for one value that the request tier does not have."""

    def __init__(self, scope: RequestScope, instance: Any, prop: Property, key: str) -> None:
        self.scope = scope
        self.instance = instance
        self.prop = prop
        self.key = key
        self.runtime = scope.runtime
        #: Where the value came from.
        self.tier: Tier = 'creator'

    def entry(self) -> TierEntry:
        """The value from the nearest place that has it."""
        refuse_cycle(self.scope, self.prop)
        if self.scope.blocks(self.prop.tags):
            self.scope.look_again(self.prop.tags)
            if self.scope.blocks(self.prop.tags):
                return self.compute()
        found = self.in_process() or self.in_shared()
        if found is not None:
            return found
        if self.prop.never_stored or not self.scope.snapshot().reachable:
            return self.compute()
        # whoever may need the database has its connection before waiting, so that those
        # who wait can not starve the one who runs
        self.scope.session().connection()
        region = app_of(self.instance).root.cache  # type: ignore[attr-defined]
        mutex = region.backend.get_mutex(region.key_mangler(self.key))
        lock = Lock(mutex, self.create, self.look_again, None)  # type: ignore[no-untyped-call]
        with lock as entry:
            return entry  # type: ignore[no-any-return]

    # the tiers

    def in_process(self) -> TierEntry | None:
        about_to(Step.PROCESS_TIER)
        slot = self.scope.process_tier.get(self.key)
        if slot is None or not self.holds(slot.stored):
            return None
        shared = self.is_immutable(slot.stored.encoded)
        value = slot.value if shared else self.decode(slot.stored.encoded.data)
        self.tier = 'process'
        return self.found(slot.stored, value)

    def in_shared(self) -> TierEntry | None:
        about_to(Step.SHARED_TIER)
        try:
            stored = self.runtime.shared_tier.get(self.scope.schema, self.key)
        except StoreUnreachable:
            self.scope.store_lost()
            return None
        return None if stored is None else self.taken(stored)

    def taken(self, stored: StoredValue) -> TierEntry | None:
        """What the shared tier had, if this transaction may see it."""
        if not self.holds(stored):
            return None
        try:
            value = self.decode(stored.encoded.data)
        except UndecodableValue:
            return None
        self.keep_in_process(stored, value)
        self.tier = 'shared'
        return self.found(stored, value)

    def is_missing(self) -> bool:
        """Whether neither the request nor the process has the value, though they may."""
        if self.key in self.scope.tier or self.scope.blocks(self.prop.tags):
            return False
        slot = self.scope.process_tier.get(self.key)
        return slot is None or not self.holds(slot.stored)

    def holds(self, stored: StoredValue) -> bool:
        """Whether the stored value is what this transaction may see."""
        lifetime = self.runtime.settings.expiration_time
        if lifetime is not None and now() - stored.created > lifetime:
            return False
        return (
            self.prop.tags <= stored.stamp.keys()
            and self.scope.snapshot().agrees(stored.stamp)
            and not self.scope.blocks(stored.stamp.keys())
        )

    def found(self, stored: StoredValue, value: Any) -> TierEntry:
        self.scope.returned.update(stored.stamp)
        tags = frozenset(stored.stamp)
        varies = frozenset(self.prop.descriptor.varies)
        return TierEntry(value, tags, stored.encoded, self.scope.era, True, varies)

    def keep_in_process(self, stored: StoredValue, value: Any) -> None:
        held = value if self.is_immutable(stored.encoded) else None
        self.scope.process_tier[self.key] = Slot(stored, held)

    def is_immutable(self, encoded: Encoded) -> bool:
        """Whether requests can share the value, as it is or as this property gives it."""
        return encoded.immutable or self.prop.descriptor.frozen

    def decode(self, data: bytes) -> Any:
        """The value of its bytes, immutable if the property says so."""
        value = self.runtime.serializer.decode(data)
        return freeze(value, self.prop.name) if self.prop.descriptor.frozen else value

    # the creator

    def look_again(self) -> tuple[TierEntry, float]:
        found = self.in_shared()
        if found is None:
            raise NeedRegenerationException
        return found, CREATED

    def create(self) -> tuple[TierEntry, float]:
        return self.compute(), CREATED

    def compute(self) -> TierEntry:
        """Run the creator, and store its value if it may be stored."""
        scope, prop = self.scope, self.prop
        snapshot = scope.snapshot()
        about_to(Step.CREATOR)
        with scope.run(prop) as run:
            value = prop.descriptor.create(self.instance)
        if prop.auto:
            learn(scope, run)
        else:
            self.audit(run)
        run.tags |= prop.tags
        encoded = self.runtime.serializer.encode(value, prop.name)
        # what the first caller gets is what all others get
        value = self.decode(encoded.data)
        tags = frozenset(run.tags)
        prop.never_stored = not self.is_storable(run)
        if run.era == scope.era:
            # the database knows of this read, but not of who reads the cache beside it
            scope.computed.update(snapshot.stamp(tags | run.reads))
        if run.era == scope.era and not prop.never_stored:
            if scope.blocks(tags | run.reads):
                scope.settle(tags)
            elif not (scope.on_replica or run.through_another or scope.has_hidden_changes()):
                self.store(StoredValue(snapshot.stamp(tags), encoded, now()), value)
        storable = not (prop.never_stored or run.through_another)
        varies = frozenset(prop.descriptor.varies)
        return TierEntry(value, tags, encoded, run.era, storable, varies)

    def audit(self, run: Run) -> None:
        """Say which tables the creator has read that its policy does not mention."""
        mode = self.runtime.settings.audit
        missed = run.reads - self.prop.tags
        # what a function concerns, only the function knows
        if mode == 'off' or not missed or self.prop.functions:
            return
        tables = ', '.join(sorted(tag.removeprefix(TABLE_TAG) for tag in missed))
        message = (
            f'{self.prop.where} read {tables}, which its policy '
            f'{self.prop.descriptor.cache_policy!r} does not mention: a change is not seen'
        )
        if mode == 'error':
            raise AuditError(message)
        if message not in self.prop.reasons:
            self.prop.reasons.add(message)
            log.warning('%s', message)

    def is_storable(self, run: Run) -> bool:
        """Whether all that the run depends on is known; if not, that is said once."""
        reason = why_not_storable(run) if self.prop.auto else run.unstorable
        if reason is not None and reason not in self.prop.reasons:
            self.prop.reasons.add(reason)
            log.warning('%s is not stored: %s', self.prop.where, reason)
        return reason is None

    def store(self, stored: StoredValue, value: Any) -> None:
        about_to(Step.FILL)
        try:
            is_stored = self.runtime.fill(self.scope.schema, self.key, stored)
        except StoreUnreachable:
            self.scope.store_lost()
            return
        if is_stored:
            self.keep_in_process(stored, value)
        else:
            self.scope.settle(stored.stamp.keys())


def learn(scope: RequestScope, run: Run) -> None:
    """What a run has read, from the database and from memory, are its tags."""
    run.tags |= run.reads
    run.tags |= table_tags({t for cls in scope.remembered() for t in tables_of(cls)})
    run.tags |= scope.runtime.with_shared(run.tags)
    if run.calls and run.opaque is None:
        functions = scope.functions_that_may_read(run.calls)
        if functions:
            run.opaque = f'it called {min(functions)}(), which may read any table'


def why_not_storable(run: Run) -> str | None:
    """Why what the run depends on is not known; None if it is."""
    return run.opaque or run.unstorable or (None if run.tags else 'it read no table')


def app_of(instance: Any) -> morepath.App:
    """The app that a property of an app or request belongs to."""
    app: morepath.App = instance if isinstance(instance, morepath.App) else instance.app
    return app


def fetched(scope: RequestScope | None, result: Any) -> Any:
    """What a creator returned, with queries fetched whole."""
    if isinstance(result, Query):
        return tuple(result)
    if isinstance(result, Select) and scope is not None:
        return tuple(scope.session().execute(result))
    return result


def refuse_cycle(scope: RequestScope, prop: Property) -> None:
    """Raise :class:`CircularPropertyError` if the property's creator is running already."""
    if any(run.prop is prop for run in scope.runs):
        way = ' -> '.join([*(run.prop.name for run in scope.runs), prop.name])
        raise CircularPropertyError(f'{prop.where}: the property reads itself: {way}')


def refuse_variant(reader: Property, prop: Property) -> None:
    """Raise :class:`VariantError`: the one would hide what the other varies by."""
    raise VariantError(
        f'{reader.where} reads {prop.where}, which differs by role or vary, and does not do so '
        "itself: it would show one's value to another; declare it with the same by_role and vary"
    )
