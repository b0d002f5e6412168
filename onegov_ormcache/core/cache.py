"""The cache: settings, session manager, tag store and tiers, and the scopes that use them.

It knows no web framework. :mod:`onegov_ormcache.web` makes one for each root app; a program
without Morepath makes its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, Self

from sqlalchemy.orm import Session

from ..database.session_manager import SessionManager
from ..errors import OutsideScopeError, PropertyError, SecondProcessError, UnknownSchemaError
from ..redis_client import connect
from ..tags.memory import MemoryTagStore
from ..tags.redis import RedisTagStore
from ..tags.settling import Settler
from ..tags.snapshot import Snapshot, TagStore
from ..tiers.process import ProcessTier, Slot, StoredValue
from ..tiers.serializer import Serializer
from ..tiers.shared import MemoryTier, RedisTier, SharedTier
from .descriptors import CachedDescriptor, cached_descriptors
from .listening import OutsideChanges
from .policies import table_tags
from .prefetching import prefetch
from .properties import Declaration, Property
from .recording import CacheEvent
from .registry import Registry
from .scope import RequestScope, innermost_scope
from .settings import OrmCacheSettings
from .versions import Versions

#: Where an object with cached properties has its cache.
ATTRIBUTE = 'orm_cache'


class OrmCache:
    """The cache of one program; made once per process, used by all threads until
    :meth:`close`, or the end of a ``with`` block.

    An object whose class has cached properties says whose it is by its attribute
    ``orm_cache``; its properties are read in a :meth:`scope` of that cache.

    :param session_manager: sessions for all tenants; by default made of the settings.
    :param settings: the settings of the section ``orm_cache`` that are not about Morepath:
        ``base``, ``dsn``, ``redis_url`` and so on.
    :raises ConfigurationError: if a setting is unknown, missing or wrong.
    :raises DatabaseUnreachable: if the database can't be reached.
    :raises StoreUnreachable: if Redis can't be reached.
    :raises SecondProcessError: if versions would live in this process's memory and
        another process uses the same database.
    """

    settings: OrmCacheSettings

    def __init__(self, *, session_manager: SessionManager | None = None, **settings: Any) -> None:
        self._open(OrmCacheSettings.read(settings, type(self).__qualname__), session_manager)

    def _open(
        self,
        settings: OrmCacheSettings,
        session_manager: SessionManager | None,
        declared: Iterable[tuple[Declaration, type]] = (),
    ) -> None:
        """Connect to database and tag store, and begin to hear of changes.

        :param declared: properties to bind, each with its class.
        """
        self.settings = settings
        self.session_manager = session_manager or SessionManager(
            settings.dsn, settings.base, settings.engine_options
        )
        self.serializer = Serializer(settings.types)
        self.process_tier = ProcessTier(settings.process_cache_size)
        self._registry = Registry(self.session_manager, settings.release)
        tags: TagStore
        tags, self.shared_tier = _stores(settings, self.serializer)
        #: What is asked of the tag store.
        self.versions = Versions(
            tags, self._registry.shared_tables, lambda: self._registry.function_tags
        )
        self.settler = Settler(self.tags, settings.lease)
        #: Called with each event, while somebody records.
        self.recorder: Callable[[CacheEvent], None] | None = None
        self._pid = os.getpid()
        #: Hears of changes from outside, if the settings say so.
        self.outside = OutsideChanges(self) if settings.listen else None
        try:
            self._reach_servers()
            for declaration, owner in declared:
                self.property_of(declaration, owner)
        except BaseException:
            self.close()
            raise
        # a schema that was created may have existed before, and been dropped
        self.session_manager.on_schema_created.connect(self._schema_created)
        self._registry.connect()
        if self.outside is not None:
            self.outside.start()

    def _reach_servers(self) -> None:
        database = self.session_manager.database
        database.check()
        self.tags.check()
        if self.tags.single_process and not database.claim():
            raise SecondProcessError(
                f'Another process or application uses {self.session_manager.dsn!r} without '
                'Redis, and versions would live in its memory alone: set redis_url in the '
                'settings section orm_cache, or end the other one'
            )

    def __repr__(self) -> str:
        store = 'memory' if self.tags.single_process else 'Redis'
        return f'<{type(self).__name__} {self.settings.namespace!r} in {store}>'

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Give all connections and the claim on the database back."""
        if self.outside is not None:
            self.outside.close()
        self.session_manager.on_schema_created.disconnect(self._schema_created)
        self._registry.disconnect()
        self.session_manager.dispose()

    # properties

    def bind(self, owner: type) -> None:
        """Bind all cached properties of a class, so that a wrong policy is an error now and
        not at the first read.

        :raises PolicyError: if a policy names a table that there is not.
        """
        for descriptor, _ in cached_descriptors(owner):
            self.property_of(descriptor, owner)

    def prefetch(self, instance: Any, *names: str) -> None:
        """Fetch these properties of an object in one round trip, as far as the shared tier
        has what this scope and process do not. Nothing is computed.

        :raises PropertyError: if the object has no such orm-cached property.
        :raises OutsideScopeError: outside of a scope.
        """
        prefetch((instance,), names)

    def property_of(self, declaration: Declaration, owner: type) -> Property:
        """Return the property of a declaration on a class; bind it if it is new."""
        return self._registry.property_of(declaration, owner)

    def is_cache_of(self, instance: Any) -> bool:
        """Return whether an object's cached properties are this cache's.

        :raises PropertyError: if the object does not say whose it is.
        """
        try:
            return getattr(instance, ATTRIBUTE) is self
        except AttributeError:
            name = type(instance).__qualname__
            raise PropertyError(
                f'{name} has cached properties and no attribute {ATTRIBUTE!r}: set it to the '
                'OrmCache in whose scopes they are read'
            ) from None

    def resolve(self, declaration: Declaration, instance: Any) -> tuple[Declaration, type]:
        """Return the declaration that is meant when one is read on an object, and the class
        whose property it is."""
        return declaration, type(instance)

    def find(self, instance: Any, name: str) -> Declaration | None:
        """Return the cached property of an object that has this name; None if it has none."""
        found = getattr(type(instance), name, None)
        return found if isinstance(found, CachedDescriptor) else None

    def with_shared(self, tags: Collection[str]) -> frozenset[str]:
        """Return the tags, with those of shared tables that cascade into theirs."""
        return self._registry.with_shared(tags)

    # scopes

    @contextmanager
    def scope(self, schema: str, *, create: bool = True) -> Iterator[RequestScope]:
        """Open a scope for a block. What the block does not commit is rolled back.

        :param schema: the tenant.
        :param create: create the schema and its tables, if there are none. Pass False for a
            name that comes from a request.
        :raises InvalidSchemaError: if no tenant may have this name.
        :raises UnknownSchemaError: if there is no such schema, and none is to be created.
        """
        if not create and not self.session_manager.has_schema(schema):
            self.session_manager.check_schema(schema)
            raise UnknownSchemaError(f'The database has no schema {schema!r}')
        scope = self.open_scope(schema, create=create)
        with scope.active():
            try:
                yield scope
            finally:
                scope.close()

    def open_scope(
        self,
        schema: str,
        *,
        create: bool,
        request_tier: MutableMapping[Any, Any] | None = None,
        process_tier: MutableMapping[str, Slot] | None = None,
    ) -> RequestScope:
        """Return a scope of this tenant that is not yet current; its user closes it.

        :param create: create the schema if there is none.
        :param request_tier: a host's own mapping for the values of this scope.
        :param process_tier: a host's own mapping for the tenant's values of this process.
        :raises SecondProcessError: in a fork of the process that owns the versions.
        :raises InvalidSchemaError: if no tenant may have this name.
        """
        if self.tags.single_process and os.getpid() != self._pid:
            raise SecondProcessError(
                'This process was forked from one that keeps versions in its memory, and '
                'would not see its changes: set redis_url in the settings section orm_cache, '
                'or set the application up after the fork'
            )
        if create:
            self.session_manager.ensure_schema_exists(schema)
        return RequestScope(self, schema, request_tier, process_tier)

    def current_scope(self) -> RequestScope:
        """Return the innermost scope of this cache that is open.

        :raises OutsideScopeError: if there is none.
        """
        scope = innermost_scope(self)
        if scope is None:
            raise OutsideScopeError(
                'There is no scope; open one: with cache.scope(schema): ...'
            )
        return scope

    def session(self) -> Session:
        """Return the current scope's session.

        :raises OutsideScopeError: outside of a scope.
        """
        return self.current_scope().session()

    # the tag store and the shared tier

    @property
    def tags(self) -> TagStore:
        """The tag store."""
        return self.versions.tags

    @property
    def function_tags(self) -> frozenset[str]:
        """The tags of all properties whose policies are functions."""
        return self._registry.function_tags

    @property
    def all_tags(self) -> frozenset[str]:
        """The tags of all tables, and of all policies that are functions."""
        return table_tags(self.session_manager.tables) | self.function_tags

    def snapshot(self, schema: str) -> Snapshot:
        """Return the tenant's present snapshot; it tells if the store can't be reached."""
        return self.versions.snapshot(schema)

    def places(self, schema: str) -> tuple[str, ...]:
        """Return the schemas in which the versions of the tenant's tags lie."""
        return self.versions.places(schema)

    def renew_later(self, *schemas: str) -> None:
        """Give these a new birth, as soon as the store can be reached."""
        self.versions.renew_later(*schemas)

    def fill(self, schema: str, key: str, stored: StoredValue) -> bool:
        """Store a value in the shared tier, if its stamp holds; True if it was stored."""
        stamp = self.versions.own_part(schema, stored.stamp)
        return stamp is not None and self.shared_tier.fill(schema, key, stored, stamp)

    # what happens

    @contextmanager
    def recording(self) -> Iterator[list[CacheEvent]]:
        """Record what the cache does in all threads while the block runs.

        :return: the events so far, oldest first.
        """
        events: list[CacheEvent] = []
        before, self.recorder = self.recorder, events.append
        try:
            yield events
        finally:
            self.recorder = before

    def handle_change(self, schema: str, obj: object, prop: Property) -> None:
        """Evict a property, when the object's transaction commits, if the object concerns it."""
        self._registry.handle_change(schema, obj, prop)

    def _schema_created(self, schema: str) -> None:
        self.renew_later(schema)


def _stores(
    settings: OrmCacheSettings, serializer: Serializer
) -> tuple[TagStore, SharedTier]:
    """Return the tag store, and the shared tier beside it."""
    lifetimes = settings.expiration_time, settings.lock_timeout
    if settings.redis_url is None:
        memory = MemoryTagStore()
        size = settings.process_cache_size
        return memory, MemoryTier(memory, serializer, size, *lifetimes)
    client = connect(settings.redis_url, settings.redis_timeout)
    redis = RedisTagStore(client, settings.namespace, quarantined=True)
    return redis, RedisTier(redis, serializer, settings.namespace, *lifetimes)
