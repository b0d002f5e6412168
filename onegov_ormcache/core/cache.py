"""The cache: its parts, who makes its sessions, and the scopes in which properties are read.

It knows no web framework. :mod:`onegov_ormcache.web` makes a cache for each root app; a
program without Morepath makes its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Self, Unpack

from sqlalchemy.orm import Session

from ..database.hosts import HostObserver
from ..database.session_manager import SessionManager
from ..errors import (
    CacheClosedError,
    ConfigurationError,
    OrmCacheError,
    OutsideScopeError,
    PropertyError,
    UnknownSchemaError,
)
from .ambient import AmbientScopes
from .auditor import Auditor
from .by_hand import ByHand
from .descriptors import (
    ATTRIBUTE,
    CachedDescriptor,
    cached_descriptors,
)
from .listening import OutsideChanges
from .prefetching import prefetch
from .properties import Declaration
from .recording import Recordings
from .scope import RequestScope, innermost_scope, scopes_around
from .settings import SECTION, OrmCacheSettings, SettingsValues
from .switching import Switch


class OrmCache(ByHand):
    """The cache of one program.

    Made once per process, and used by all threads until :meth:`close`, or until the end of a
    ``with`` block.

    An object whose class has cached properties needs the attribute ``orm_cache``, which is
    the cache that the properties belong to. They are read in a :meth:`scope` of that cache, or
    for a host with sessions of its own wherever it calls :meth:`enter_scope`.

    :param session_manager: sessions for all tenants; by default made from the settings.
    :param observer: tells of the sessions of a host, which makes them itself: the result of
        :func:`.observe`.
    :param settings: the settings of the section ``orm_cache`` that are not about Morepath:
        ``base``, ``dsn``, ``redis_url`` and so on.
    :raises ConfigurationError: if a setting is unknown, missing or wrong.
    :raises DatabaseUnreachable: if the database can't be reached.
    :raises StoreUnreachable: if Redis can't be reached.
    :raises SecondProcessError: if versions would live in this process's memory and
        another process uses the same database.
    """

    def __init__(
        self,
        *,
        session_manager: SessionManager | None = None,
        observer: HostObserver | None = None,
        **settings: Unpack[SettingsValues],
    ) -> None:
        if session_manager is not None and observer is not None:
            raise ConfigurationError(
                'OrmCache: give a session manager, or an observer of sessions, and not both'
            )
        read = OrmCacheSettings.read(settings, type(self).__qualname__)
        self._open(read, session_manager or observer)

    def _open(
        self,
        settings: OrmCacheSettings,
        sessions: SessionManager | HostObserver | None,
        declared: Iterable[tuple[Declaration, type]] = (),
        **host: Any,
    ) -> None:
        """Connect to database and tag store, and begin to listen for changes.

        :param sessions: who makes the sessions; None: the settings tell.
        :param declared: properties to bind, each with its class.
        :param host: what :class:`.AmbientScopes` must know of a host.
        """
        self.settings = settings
        is_own = sessions is None
        if sessions is None:
            sessions = SessionManager(settings.dsn, settings.base, settings.engine_options)
        self._session_manager = sessions if isinstance(sessions, SessionManager) else None
        self.observer = (
            sessions.observer if isinstance(sessions, SessionManager) else sessions
        )
        if settings.check_hits and isinstance(sessions, HostObserver):
            raise ConfigurationError(
                f'setting {SECTION}.check_hits needs sessions of the package, and here a host '
                'makes them: leave it at 0'
            )
        self.recordings = Recordings(self._own_scopes)
        self._make_parts()
        #: Turned off by tests; see :meth:`disabled`.
        self.switch = Switch(self._own_scopes)
        self._is_closed = False
        #: Recomputes a share of the hits; None unless the setting ``check_hits`` is above 0.
        self.auditor = Auditor(self, settings.check_hits) if settings.check_hits else None
        #: The listener for changes from outside; None unless the setting ``listen`` is on.
        self.outside = OutsideChanges(self) if settings.listen else None
        #: The scopes of a host; None if the cache's user opens its scopes.
        self.ambient: AmbientScopes | None = None
        try:
            if not settings.lazy:
                self.start()
        except BaseException:
            if is_own:  # else the claim on the database may be that of another cache
                self.session_manager.dispose()
            raise
        try:
            if isinstance(self.observer, HostObserver):
                self.ambient = AmbientScopes(self, self.observer, **host)
            for declaration, owner in declared:
                self.registry.property_of(declaration, owner)
            # a new schema may have the name of one that was dropped, whose values must not be
            # valid for it
            self.observer.on_schema_created.connect(self._schema_created)
            self.registry.connect()
            if self.outside is not None:
                self.outside.start()
        except BaseException:
            self.close()
            raise

    @property
    def session_manager(self) -> SessionManager:
        """The maker of the sessions.

        :raises ConfigurationError: if a host makes them.
        """
        if self._session_manager is None:
            raise ConfigurationError('The sessions are made by a host, and not by the package')
        return self._session_manager

    def __repr__(self) -> str:
        store = 'memory' if self.tags.single_process else 'Redis'
        return f'<{type(self).__name__} {self.settings.namespace!r} in {store}>'

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening, close the database connections and give up the claim on the database.

        Afterwards the cache opens no scopes.
        """
        self._is_closed = True
        if self.auditor is not None:
            self.auditor.close()
        if self.outside is not None:
            self.outside.close()
        if self.recovery is not None:
            self.recovery.close()
        self.observer.on_schema_created.disconnect(self._schema_created)
        self.registry.disconnect()
        if self.ambient is not None:
            self.ambient.close()
        self.statistics.close()
        if self._session_manager is not None:
            self._session_manager.dispose()
        else:
            self.observer.database.dispose()

    # properties

    def bind(self, owner: type) -> None:
        """Bind all cached properties of a class, so that a wrong policy is an error now and
        not at the first read.

        :raises PolicyError: if a policy names a table that the application does not have.
        :raises PropertyError: if it is no class, or has no cached property.
        """
        found = list(cached_descriptors(owner)) if isinstance(owner, type) else []
        if not found:
            raise PropertyError(f'bind: {owner!r} is no class with cached properties')
        for descriptor, _ in found:
            self.registry.property_of(descriptor, owner)

    def prefetch(
        self, instance: Any, *names: str, args: Iterable[Any] | None = None
    ) -> None:
        """Fetch values of properties from the shared tier in one round trip.

        Values that the request tier or the process tier has are not fetched again. Values
        that the shared tier lacks are not computed.

        :param instance: the object whose properties these are.
        :param names: the names of orm-cached properties.
        :param args: the arguments of the values, for properties that take arguments: items as for
            :meth:`.BoundFunction.many`.
        :raises PropertyError: if the object has no such orm-cached property.
        :raises OutsideScopeError: outside of a scope.
        """
        prefetch((instance,), names, args)

    def is_cache_of(self, instance: Any) -> bool:
        """Return whether the cached properties of an object belong to this cache."""
        try:
            return getattr(instance, ATTRIBUTE, None) is self
        except OrmCacheError:
            return False  # an app that is not set up

    def resolve(self, declaration: Declaration, instance: Any) -> tuple[Declaration, type]:
        """Return the declaration that counts when this one is read on an object, and the class
        whose property it is."""
        return declaration, type(instance)

    def find(self, instance: Any, name: str) -> Declaration | None:
        """Return the cached property of this name that an object has; None if it has none."""
        found = getattr(type(instance), name, None)
        return found if isinstance(found, CachedDescriptor) else None

    def context_key(self, instance: Any) -> str:
        """Return the part of a value's key that says where the object belongs, beside its class;
        here it is empty."""
        return ''

    def watching(self, instance: Any) -> AbstractContextManager[None]:
        """Return a context manager in which the creator of an orm-cached property of the object
        runs; here it does nothing."""
        return nullcontext()

    # scopes

    @contextmanager
    def scope(self, schema: str, *, create: bool = True) -> Iterator[RequestScope]:
        """Open a scope for a block. Changes that the block does not commit are rolled back.

        :param schema: the tenant.
        :param create: create the schema and its tables, if they are missing. Pass False for a
            name that comes from a request.
        :raises InvalidSchemaError: if no tenant may have this name.
        :raises UnknownSchemaError: if there is no such schema and ``create`` is False.
        :raises CacheClosedError: after :meth:`close`.
        """
        self._refuse_use_when_closed()
        if self.ambient is not None:
            with self.ambient.entered(schema) as ambient_scope:
                yield ambient_scope
            return
        if not create:
            self.require_schema(schema)
        with self.open_scope(schema, create=create).opened() as scope:
            yield scope

    def enter_scope(self, schema: str, session: Session | None = None) -> RequestScope:
        """Work for a tenant from now on, in this thread; for a host with sessions of its own.

        Properties are read without a ``with`` block then. Their values belong to the host's
        transaction, whatever ends that.

        :param schema: the tenant.
        :param session: the session of this unit of work, if the host has no ``scoped_session``.
        :raises InvalidSchemaError: if no tenant may have this name.
        :raises ConfigurationError: if there is no host, nobody observes the session, or the host
            says that it works for another tenant.
        """
        return self._ambient('enter_scope').enter(schema, session)

    def begin_request(self) -> None:
        """Forget what this thread has read, at the begin of a request of a host.

        :raises ConfigurationError: if there is no host.
        """
        self._ambient('begin_request').begin_request()

    def unit_ended(self) -> None:
        """Take notice that this thread's unit of work has ended, maybe without a session.

        Not needed after a commit or rollback of a session, of which the cache is told.

        :raises ConfigurationError: if there is no host.
        """
        self._ambient('unit_ended').unit_ended()

    def _ambient(self, method: str) -> AmbientScopes:
        self._refuse_use_when_closed()
        if self.ambient is None:
            raise ConfigurationError(
                f'{method}() is for hosts with sessions of their own, which observe() makes '
                'known; open a scope instead: with cache.scope(schema): ...'
            )
        return self.ambient

    def open_scope(
        self,
        schema: str,
        *,
        create: bool,
        shown: Callable[[], MutableMapping[Any, Any]] | None = None,
    ) -> RequestScope:
        """Return a new scope, which is not yet the current one; the caller closes it.

        :param schema: the tenant.
        :param create: create the schema and its tables, if they are missing.
        :param shown: returns a mapping of the application that is shown the scope's values.
        :raises CacheClosedError: after :meth:`close`.
        :raises SecondProcessError: in a fork of the process that keeps versions in its memory.
        :raises InvalidSchemaError: if no tenant may have this name.
        """
        self._refuse_use_when_closed()
        self.enter_process()
        self.reach_servers()
        if create:
            self.session_manager.ensure_schema_exists(schema)
        return RequestScope(self, schema, shown)

    def enter_process(self) -> None:
        """Work in this process, which may be a fork; called when a scope opens.

        :raises SecondProcessError: in a fork of the process that keeps versions in its memory.
        """
        self.refuse_fork()
        if self.outside is not None:
            self.outside.resume()

    def require_schema(self, schema: str) -> None:
        """Raise an error if the database does not have the tenant.

        :raises InvalidSchemaError: if no tenant may have this name.
        :raises UnknownSchemaError: if there is no such schema.
        """
        self.session_manager.check_schema(schema)
        if not self.session_manager.has_schema(schema):
            raise UnknownSchemaError(
                f'The database has no schema {schema!r}; correct the name, or leave out '
                'create=False to create it'
            )

    def _refuse_use_when_closed(self) -> None:
        if self._is_closed:
            raise CacheClosedError(f'{self!r} is closed; make another cache')

    def current_scope(self) -> RequestScope:
        """Return the innermost scope of this cache that is open.

        :raises OutsideScopeError: if there is none.
        """
        scope = self.ambient.present() if self.ambient is not None else innermost_scope(self)
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

    @property
    def is_disabled(self) -> bool:
        """True in a block of :meth:`disabled`."""
        return self.switch.is_off

    def disabled(self) -> AbstractContextManager[None]:
        """Turn the cache off while a ``with`` block runs, in a test for example.

        Each read of an orm-cached property runs its creator, and each cached view runs; nothing is
        stored. Commits evict as ever. Request-cached properties and ``app.cache`` are left as they
        are. A transaction that has begun in the block goes on without the cache after it; one that
        has begun in another thread before the block goes on with it.
        """
        return self.switch.off()

    def _own_scopes(self) -> Iterator[RequestScope]:
        """Yield this thread's open scopes of this cache."""
        if self.ambient is not None:
            yield from self.ambient.of_this_thread()
        else:
            yield from scopes_around(self)

    def _schema_created(self, schema: str) -> None:
        # a process that does not know the tenant's database yet uses nothing of the tenant; the
        # new schema has another identity than one of the same name had
        if self.tags.identity(schema) is not None:
            self.renew_later(schema)
