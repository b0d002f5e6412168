"""Looks at what the tiers have of one value, without reading it as a view does."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, Final

from ..core.descriptors import CachedDescriptor, OrmCacheDescriptor, cached_descriptors
from ..core.lookup import Lookup
from ..core.properties import Call
from ..core.recording import Tier
from ..core.scope import RequestScope
from ..errors import PropertyError, StoreUnreachable
from ..tags.snapshot import CODE_TAG, VALUE_TAG, Snapshot
from ..tiers.process import Stamp, StoredValue
from .targets import cache_of, open_scope_of, schema_of

#: Stands for arguments that are not given.
NOT_GIVEN: Final[Any] = object()

#: The most tags that a message names.
SHOWN = 10


class Value:
    """One value of an orm-cached property, for one tenant; made by an assertion.

    :param target: the app, request or other object whose property it is.
    :param name: the property's name.
    :param args: the arguments: a tuple, or the only one; :data:`NOT_GIVEN`: none.
    :param schema: the tenant; None: that of the open scope.
    :param what: the function that was called, for messages.
    :raises PropertyError: if the object has no such orm-cached property.
    :raises ArgumentError: if the arguments do not fit the property.
    :raises OutsideScopeError: if no scope is open and no tenant is given.
    """

    def __init__(
        self, target: Any, name: str, args: Any, schema: str | None, what: str
    ) -> None:
        self.cache = cache_of(target, what)
        self.schema = schema_of(self.cache, schema, what)
        self.target = target
        self._name = name
        self._args = () if args is NOT_GIVEN else args if isinstance(args, tuple) else (args,)
        self.call = self._call(what)

    def __str__(self) -> str:
        shown = f'({", ".join(map(repr, self._args))})' if self._args else ''
        return f'{self.call.prop.where}{shown} of {self.schema!r}'

    def _call(self, what: str) -> Call:
        cache, target, name = self.cache, self.target, self._name
        found = cache.find(target, name) if isinstance(name, str) else None
        if not isinstance(found, OrmCacheDescriptor):
            names = _names_of(type(target))
            raise PropertyError(
                f'{what}: {type(target).__qualname__} has no orm-cached property {name!r}; it has '
                f'{", ".join(names) or "none"}'
            )
        declared, owner = cache.resolve(found, target)
        prop = cache.registry.property_of(declared, owner)
        assert isinstance(declared, CachedDescriptor)
        arguments = declared.parameters.bind(self._args, {})
        return prop.call(target, arguments, cache.context_key(target) + declared.variant(target))

    # what the tiers have

    def read(self) -> None:
        """Read the value, as a view does."""
        found = getattr(self.target, self._name)
        if self.call.prop.takes_arguments:
            found(*self._args)

    def in_process(self) -> StoredValue | None:
        """Return what the process tier has, valid or not."""
        slot = self.cache.process_tier.of(f'{self.schema}|').get(self.call.key)
        return None if slot is None else slot.stored

    def in_shared(self) -> StoredValue | None:
        """Return what the shared tier has, valid or not; None if it can't be reached."""
        try:
            return self.cache.shared_tier.get(self.schema, self.call.key)
        except StoreUnreachable:
            return None

    def tiers(self, scope: RequestScope) -> dict[Tier, StoredValue | None]:
        """Return the tiers that have a value which a read in this scope may use, the nearest
        first, with what they have stored."""
        scope.flush()  # as a read does
        lookup = Lookup(scope, self.call)
        stored: dict[Tier, StoredValue | None] = {}
        if self.call.key in scope.tier:
            stored['request'] = None
        if scope.blocks(self.call.tags):  # which also finds out which database it is
            return stored
        tiers: tuple[tuple[Tier, StoredValue | None], ...] = (
            ('process', self.in_process()), ('shared', self.in_shared())
        )  # fmt: skip
        stored.update((t, found) for t, found in tiers if found and lookup.holds(found))
        return stored

    @contextmanager
    def scope(self) -> Iterator[RequestScope]:
        """Yield the open scope of the tenant; if there is none, a new one."""
        scope = open_scope_of(self.cache)
        if scope is not None and scope.schema == self.schema:
            yield scope
        else:
            with self.new_scope() as opened:
                yield opened

    @contextmanager
    def new_scope(self) -> Iterator[RequestScope]:
        """Yield a new scope of the tenant; of a host, the scope that this thread has."""
        with self.cache.scope(self.schema, create=False) as scope:
            yield scope

    def present(self, tags: Collection[str]) -> Snapshot:
        """Return the tenant's present snapshot, after doubts of these tags were settled.

        :raises StoreUnreachable: if Redis can't be reached.
        """
        snapshot = self.cache.snapshot(self.schema)
        if not snapshot.identified or not snapshot.in_doubt.isdisjoint(tags):
            # what a commit has sent may be on its way; the database tells whether it has ended
            with self.new_scope() as scope:
                scope.connection()
                scope.settle(tags)
            snapshot = self.cache.snapshot(self.schema)
        if not snapshot.reachable:
            raise StoreUnreachable(
                f'{self}: Redis can not be reached, so nobody knows what was evicted'
            )
        return snapshot

    # why

    def why_missing(self, scope: RequestScope) -> str:
        """Return why a read in this scope runs the creator."""
        if self.cache.is_disabled:
            return 'the cache is disabled'
        stored = self.in_process() or self.in_shared()
        if scope.blocks(self.call.tags | (stored.stamp.keys() if stored else set())):
            return self._why_blocked(scope, stored)
        if stored is None:
            return f'no tier has it: {self._why_unstored()}'
        changed = changes(stored.stamp, scope.snapshot())
        if changed:
            return f'it was evicted: {shown_tags(changed)} changed since it was stored'
        return 'what is stored has expired, or belongs to another policy'

    def _why_blocked(self, scope: RequestScope, stored: StoredValue | None) -> str:
        tags = self.call.tags | (stored.stamp.keys() if stored else set())
        own = {tag for path in scope.transactions for tag in path.tags if tag in tags}
        if own:
            return f"this scope's transaction has changed {shown_tags(own)} itself"
        if in_doubt := scope.snapshot().in_doubt & tags:
            return f'another transaction is about to change {shown_tags(in_doubt)}'
        return f'the scope reads it from the database ({scope.why_blocked(tags)})'

    def _why_unstored(self) -> str:
        """Return why the last run of the creator did not store it, as far as that is known."""
        prop = self.call.prop
        try:
            told = self.cache.statistics.of(self.schema).properties.get(prop.where)
        except StoreUnreachable:
            return 'Redis can not be reached'
        run = None if told is None else told.last_run
        if run is None:
            return 'it was never read'
        if run.why_not_stored:
            return f'its last run was not stored ({run.why_not_stored})'
        return 'it was not read, or was dropped'


def changes(stamp: Stamp, snapshot: Snapshot) -> set[str]:
    """Return the tags of a stamp that have changed by the time of a snapshot."""
    return {tag for tag, version in stamp.items() if snapshot.version(tag) != version}


def shown_tags(tags: Collection[str]) -> str:
    """Return tags as a text, without those that the application does not know by name."""
    if CODE_TAG in tags:
        return f'everything ({CODE_TAG})'
    names = sorted(tag for tag in tags if not tag.startswith(VALUE_TAG)) or sorted(tags)
    more = f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''
    return ', '.join(names[:SHOWN]) + more


def _names_of(owner: type) -> list[str]:
    found = (each for each, _ in cached_descriptors(owner))
    return sorted(each.name for each in found if isinstance(each, OrmCacheDescriptor))

