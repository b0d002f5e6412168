"""What one root app owns: settings, session manager, tag store, tiers.

Made by ``setup_orm_cache``; mounted apps, which are made anew for each request,
use their root app's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, MutableMapping
from threading import Lock
from typing import Any

from sqlalchemy.orm import object_session

from ..database.session_manager import SessionManager
from ..database.signals import tables_of
from ..database.transactions import SCOPE_OPTION
from ..errors import SecondProcessError, StoreUnreachable
from ..tags.homes import HomeTagStore
from ..tags.memory import MemoryTagStore
from ..tags.redis import RedisTagStore, connect
from ..tags.settling import Settler
from ..tags.snapshot import UNREACHABLE, Snapshot, Stamp, TagStore
from ..tiers.process import ProcessTier, Slot, StoredValue
from ..tiers.serializer import Serializer
from ..tiers.shared import MemoryTier, RedisTier, SharedTier
from .descriptors import CachedDescriptor, OrmCacheDescriptor, Property
from .listening import OutsideChanges
from .policies import (
    Change,
    Policy,
    concerns,
    depends_on_shared,
    resolve_policy,
    table_tags,
)
from .recording import Event
from .scope import RequestScope
from .settings import OrmCacheSettings


class Runtime:
    """Made once per root app, used by all threads until :meth:`close`.

    :raises ConfigurationError: if it can't listen, and the settings say so.
    :raises DatabaseUnreachable: if the database can't be reached.
    :raises StoreUnreachable: if Redis can't be reached.
    :raises SecondProcessError: if versions would live in this process's memory and
        another process uses the same database.
    """

    def __init__(self, settings: OrmCacheSettings, session_manager: SessionManager) -> None:
        self.settings = settings
        self.session_manager = session_manager
        self.serializer = Serializer(settings.types)
        self.process_tier = ProcessTier(settings.process_cache_size)
        self.tags: TagStore
        self.shared_tier: SharedTier
        self.homes: HomeTagStore | None = None
        if settings.redis_url is None:
            memory = MemoryTagStore()
            self.tags = memory
            self.shared_tier = MemoryTier(
                memory,
                self.serializer,
                settings.process_cache_size,
                settings.expiration_time,
                settings.lock_timeout,
            )
        else:
            redis = RedisTagStore(
                connect(settings.redis_url, settings.redis_timeout),
                settings.namespace,
                quarantined=True,
            )
            self.tags = redis
            self.shared_tier = RedisTier(
                redis,
                self.serializer,
                settings.namespace,
                settings.expiration_time,
                settings.lock_timeout,
            )
        shared = {table for table in session_manager.tables if '.' in table}
        if shared:
            self.tags = self.homes = HomeTagStore(self.tags, shared)
        self._beside = depends_on_shared(session_manager.cascades, shared)
        self.settler = Settler(self.tags, settings.lease)
        #: Is told of each event, while somebody records.
        self.recorder: Callable[[Event], None] | None = None
        self.function_tags: frozenset[str] = frozenset()
        self._function_properties: tuple[Property, ...] = ()
        self._properties: dict[tuple[CachedDescriptor[Any], type], Property] = {}
        # by place, the last debt's own mark
        self._owed: dict[str, object] = {}
        self._is_connected = False
        self._lock = Lock()
        self._pid = os.getpid()
        #: Hears of changes from outside, if the settings say so.
        self.outside = OutsideChanges(self) if settings.listen else None
        self._start()

    def _start(self) -> None:
        database = self.session_manager.database
        database.check()
        self.tags.check()
        if self.tags.single_process and not database.claim():
            raise SecondProcessError(
                f'Another process or application uses {self.session_manager.dsn!r} without '
                'Redis, and versions would live in its memory alone: set redis_url in the '
                'settings section orm_cache, or end the other one'
            )

    def close(self) -> None:
        """Give all connections and the claim on the database back."""
        if self.outside is not None:
            self.outside.close()
        self.session_manager.on_schema_created.disconnect(self._created)
        for signal, handler in self._judges():
            signal.disconnect(handler)
        self.session_manager.dispose()

    # properties

    @property
    def all_tags(self) -> frozenset[str]:
        """The tags of all tables, and of all policies that are functions."""
        return table_tags(self.session_manager.tables) | self.function_tags

    def property(self, descriptor: CachedDescriptor[Any], owner: type) -> Property:
        """The descriptor on this application class."""
        prop = self._properties.get((descriptor, owner))
        return prop if prop is not None else self.bind(descriptor, owner)

    def bind(self, descriptor: CachedDescriptor[Any], owner: type) -> Property:
        """Bind a descriptor to an application class.

        :raises PolicyError: if the policy names a table that there is not.
        """
        policy = Policy(frozenset(), (), auto=True)
        if isinstance(descriptor, OrmCacheDescriptor):
            policy = resolve_policy(
                descriptor.cache_policy,
                self.session_manager.tables,
                f'{owner.__qualname__}.{descriptor.name} ({descriptor.location})',
            )
        prop = Property(descriptor, owner, policy, self.settings.release)
        prop.tags = self.with_shared(prop.tags)
        if policy.functions:
            # whose object a tenant changed, no other tenant's function can judge
            prop.tags |= self._beside.get(None, frozenset())
        with self._lock:
            prop = self._properties.setdefault((descriptor, owner), prop)
            judged = [p for p in self._properties.values() if p.functions]
            self._function_properties = tuple(judged)
            self.function_tags = frozenset(p.function_tag for p in judged if p.function_tag)
        if policy.functions and self._is_connected:
            self.connect_signals()  # of a class that was not known to be mounted
        return prop

    def with_shared(self, tags: Collection[str]) -> frozenset[str]:
        """The tags, and those of shared tables of which a change cascades into theirs.

        The tenant that changes a shared table sees the cascade in its own schema alone.
        """
        return frozenset(tags).union(*(self._beside.get(tag, ()) for tag in tags))

    # change detection

    def listen(self) -> None:
        """Begin to hear of changes from outside, if the settings say so."""
        if self.outside is not None:
            self.outside.start()

    def connect_signals(self) -> None:
        """Judge the objects of each flush, if there are policies that are functions."""
        # a schema that was created may have existed before, and been dropped
        self._is_connected = True
        self.session_manager.on_schema_created.connect(self._created)
        if self._function_properties:
            for signal, handler in self._judges():
                signal.connect(handler)

    def _judges(self) -> Iterable[tuple[Any, Any]]:
        manager = self.session_manager
        yield manager.on_insert, self._inserted
        yield manager.on_update, self._updated
        yield manager.on_delete, self._deleted

    def _inserted(self, schema: str, obj: object) -> None:
        self.judge(schema, obj, 'insert', self._function_properties)

    def _updated(self, schema: str, obj: object) -> None:
        self.judge(schema, obj, 'update', self._function_properties)

    def _deleted(self, schema: str, obj: object) -> None:
        self.judge(schema, obj, 'delete', self._function_properties)

    def _created(self, schema: str) -> None:
        self.owe(schema)

    def judge(
        self, schema: str, obj: object, change: Change, properties: Iterable[Property]
    ) -> None:
        """Collect the tags of the function policies that a changed object concerns."""
        scope = changed_in(schema, obj)
        if scope is None:
            return
        for prop in properties:
            if prop.function_tag and concerns(prop.functions, obj, change, prop.where):
                scope.changed({prop.function_tag})

    def judge_property(self, schema: str, obj: object, prop: Property) -> None:
        """Collect the tags of one property, if a changed object concerns it at all."""
        scope = changed_in(schema, obj)
        if scope is not None:
            scope.changed(prop.tags & table_tags(set(tables_of(type(obj)))))
            self.judge(schema, obj, 'update', (prop,))

    # the tag store

    def places(self, schema: str) -> tuple[str, ...]:
        """The tenant, and the homes of the tables that it shares with others."""
        return (schema, *(self.homes.homes if self.homes else ()))

    def snapshot(self, schema: str) -> Snapshot:
        """The tenant's snapshot; :data:`UNREACHABLE` if the store can't be reached."""
        try:
            self._pay(self.places(schema))
            snapshot = self.tags.snapshot(schema)
            if not self.function_tags <= snapshot.versions.keys():
                # the first use of the tenant since its birth, or by this release
                self.tags.register(schema, self.function_tags)
                snapshot = self.tags.snapshot(schema)
            return snapshot
        except StoreUnreachable:
            return UNREACHABLE

    def owe(self, *schemas: str) -> None:
        """These must be born anew, as soon as the store can be reached: a commit's
        versions could not be published, or a schema is another one."""
        with self._lock:
            self._owed |= {schema: object() for schema in schemas}
        try:
            self._pay(schemas)
        except StoreUnreachable:
            pass  # the next snapshot tries again

    def _pay(self, schemas: Iterable[str]) -> None:
        for schema in schemas if self._owed else ():
            debt = self._owed.get(schema)
            if debt is None:
                continue
            self.tags.renew(schema)
            with self._lock:
                if self._owed.get(schema) is debt:  # else it was paid too early for the next
                    del self._owed[schema]

    def fill(self, schema: str, key: str, stored: StoredValue) -> bool:
        """Store a value in the shared tier, if its stamp holds; True if it was stored."""
        stamp: Stamp | None = stored.stamp
        if self.homes is not None:
            stamp = self.homes.own_part(schema, stored.stamp)
        return stamp is not None and self.shared_tier.fill(schema, key, stored, stamp)

    # scopes

    def scope(
        self,
        schema: str,
        *,
        create: bool,
        request_tier: MutableMapping[Any, Any] | None = None,
        process_tier: MutableMapping[str, Slot] | None = None,
    ) -> RequestScope:
        """A scope of this tenant, not yet current.

        :param create: create the schema if there is none.
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


def changed_in(schema: str, obj: object) -> RequestScope | None:
    """The scope in which a signal says that the object was changed, if it is one's."""
    session = object_session(obj)
    scope: RequestScope | None = session.info.get(SCOPE_OPTION) if session else None
    return scope if scope is not None and scope.schema == schema else None
