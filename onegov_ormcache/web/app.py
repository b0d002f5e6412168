"""The application class of Morepath applications that have cached properties.

It sets up the cache of a root app, and opens request scopes; :mod:`.configuration` has what is
done before. It does not know how values are read, stored and evicted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from dogpile.cache import CacheRegion
from sqlalchemy.orm import Session

from ..core.descriptors import OrmCacheDescriptor, scope_of
from ..core.marking import TableName
from ..core.prefetching import prefetch
from ..core.recording import LIMIT, RecordedEvents
from ..core.scope import RequestScope
from ..core.settings import SECTION
from ..database.hosts import HostObserver
from ..database.session_manager import SessionManager
from ..errors import ConfigurationError, OrmCacheError, PropertyError
from ..forks import OwnLock
from ..tiers.process import Slot
from .auditing import remember
from .cache import ROOT_ATTRIBUTE, AppCache, descriptors_of
from .configuration import ConfiguredApp
from .host import HostAttribute, host_attribute
from .mounting import mount_variables
from .settings import AppSettings

#: Held while an app is set up, by one thread.
_SETUP = OwnLock(is_reentrant=True)


class OrmCacheApp(ConfiguredApp):
    """A Morepath application with orm-cached and request-cached properties.

    Derive your root app from it, and each mounted app that has such properties.
    The program makes the root app. Its cache is set up when the middleware wraps it
    or at the first ``request_scope``, and lives until :meth:`close_orm_cache` or as
    long as the process. Morepath makes a mounted app anew for each request; it uses
    the cache of its root app.
    """

    request_class: type[Any]

    #: True from :meth:`setup_orm_cache` to :meth:`close_orm_cache`.
    is_orm_cache_setup = False

    # the cache of the root app

    def setup_orm_cache(self) -> None:
        """Connect to the database and the tag store, and to the session manager's signals.

        The middleware and ``request_scope`` call this if it has not been called.

        If several threads call it at once, one does it and the others wait.

        :raises OrmCacheError: if the app is set up already, if it is not a root app, if a
            server can't be reached, or if a setting is missing or wrong.
        """
        if self.is_orm_cache_setup:
            raise OrmCacheError(f'{type(self).__qualname__} is set up already')
        if self.parent is not None:
            raise OrmCacheError(f'{type(self).__qualname__} is mounted; set its root app up')
        with _SETUP.present:
            if not self.is_orm_cache_setup:  # else another thread was faster
                self._set_up()

    def _set_up(self) -> None:
        if not self.is_committed():
            self.commit()
        app_classes = type(self).mounted_app_classes()
        settings = self.own_settings()
        observer = self.observer
        cache = (
            AppCache(settings, self.session_manager, app_classes)
            if observer is None
            else AppCache(settings, observer, app_classes, **self._as_host())
        )
        vars(self)[ROOT_ATTRIBUTE] = cache
        self.is_orm_cache_setup = True

    def own_settings(self) -> AppSettings:
        """Return the validated settings of this root app: those of its class, and its own
        :attr:`orm_cache_settings`, which come first.

        :raises ConfigurationError: if a setting is unknown or wrong.
        """
        section = vars(getattr(self.config.setting_registry, SECTION))
        return AppSettings.read({**section, **self.orm_cache_settings}, type(self).__qualname__)

    def _as_host(self) -> dict[str, Any]:
        """Return what the scopes of a host must know of it."""
        own: Any = self
        return {
            'session': (lambda: own.session()) if HOST['session'].is_provided(self) else None,
            'schema': (lambda: own.schema) if HOST['schema'].is_provided(self) else None,
            'shown': self._shown(),
        }

    def _shown(self) -> Callable[[], MutableMapping[Any, Any]] | None:
        """Return what gives the host's mapping that is shown the values; None if it has none."""
        own: Any = self
        is_provided = HOST['request_cache'].is_provided(self)
        return (lambda: own.request_cache) if is_provided else None

    def close_orm_cache(self) -> None:
        """Close all connections. The app can be set up again afterwards.

        Does nothing if the app is not set up.
        """
        if self.is_orm_cache_setup:
            vars(self)[ROOT_ATTRIBUTE].close()
            del vars(self)[ROOT_ATTRIBUTE]
            vars(self).pop('_own_session_manager', None)
            self.is_orm_cache_setup = False

    def ensure_orm_cache(self) -> AppCache:
        """Return the root app's cache; set the root app up first if it is not set up.

        :raises ConfigurationError: if the root app does not derive from this class.
        :raises OrmCacheError: see :meth:`setup_orm_cache`.
        """
        root = self.root
        if not isinstance(root, OrmCacheApp):
            raise ConfigurationError(
                f'The root app {type(root).__qualname__} must derive from OrmCacheApp, '
                'because what lives longer than a request belongs to it'
            )
        if not root.is_orm_cache_setup:
            with _SETUP.present:
                if not root.is_orm_cache_setup:
                    root.setup_orm_cache()
        cache: AppCache = vars(root)[ROOT_ATTRIBUTE]
        return cache

    @property
    def orm_cache(self) -> AppCache:
        """The root app's cache.

        :raises OrmCacheError: if the root app is not set up.
        """
        cache: AppCache | None = vars(self.root).get(ROOT_ATTRIBUTE)
        if cache is None:
            raise OrmCacheError(f'{type(self.root).__qualname__} is not set up')
        return cache

    def recording(self, limit: int = LIMIT) -> AbstractContextManager[RecordedEvents]:
        """Record what the cache does in all threads while a ``with`` block runs.

        :param limit: the most events that are kept, see :meth:`.OrmCache.recording`.
        :return: a context manager; ``as`` gives the list of the events so far, oldest first.
        """
        return self.ensure_orm_cache().recording(limit)

    @property
    def orm_cache_descriptors(self) -> Iterator[OrmCacheDescriptor[Any]]:
        """The orm-cached properties of the app class and its request class."""
        for descriptor, _ in descriptors_of(type(self)):
            if isinstance(descriptor, OrmCacheDescriptor):
                yield descriptor

    def descriptor_bound_orm_change_handler(
        self, descriptor: OrmCacheDescriptor[Any]
    ) -> Callable[..., None]:
        """Return a handler for the session manager's signals that evicts one property.

        The package connects handlers of its own. A host may connect this one to signals
        of its own.

        :return: ``handler(schema, obj, session=None, **extra)``. The property is evicted when the
            object's transaction commits, if its policy concerns a table of the object, or if a
            function of its policy returns True for the object or raises. It raises a
            :class:`.ConfigurationError` for an object of a session that nobody observes.
        """
        cache = self.ensure_orm_cache()
        prop = cache.registry.property_of(descriptor, type(self))

        def handle_orm_change(
            schema: str, obj: object, session: Session | None = None, **extra: object
        ) -> None:
            cache.registry.handle_change(schema, obj, prop, session)

        return handle_orm_change

    # scopes

    @contextmanager
    def request_scope(
        self, schema: str | None = None, *, create: bool = True
    ) -> Iterator[RequestScope]:
        """Open a request scope for a ``with`` block, in a script or a test for example.

        Changes that the block does not commit are rolled back.

        :param schema: the tenant; by default the ``schema`` that a host class provides.
        :param create: create the schema and its tables, if they are missing. Pass False where
            a mistyped name should be an error.
        :raises InvalidSchemaError: if a tenant can't have this name.
        :raises UnknownSchemaError: if there is no such schema and ``create`` is False.
        :raises ConfigurationError: if no schema is given and the host class provides none.
        """
        if schema is None and not HOST['schema'].is_provided(self):
            raise ConfigurationError('request_scope needs a schema: app.request_scope("main")')
        named = self.schema if schema is None else schema
        cache = self.ensure_orm_cache()
        if cache.ambient is not None:
            with cache.scope(named) as scope:
                yield scope
            return
        if not create:
            cache.require_schema(named)
        with self.open_scope(named, create=create).opened() as scope:
            yield scope

    def open_scope(self, schema: str, *, create: bool) -> RequestScope:
        """Return a new scope of a tenant. The caller makes it current, and closes it.

        :param create: create the schema and its tables if they do not exist.
        :raises InvalidSchemaError: if a tenant can't have this name.
        """
        cache = self.ensure_orm_cache()

        return cache.open_scope(schema, create=create, shown=self._shown())

    # scopes of a host that has sessions of its own

    def enter_scope(self, schema: str | None = None) -> RequestScope:
        """Work for a tenant from now on, in this thread; see :meth:`.OrmCache.enter_scope`.

        Sets the app up, if it is not set up yet.

        :param schema: by default the host's :attr:`schema`.
        """
        return self.ensure_orm_cache().enter_scope(self.schema if schema is None else schema)

    def begin_request(self) -> None:
        """Forget what this thread has read, at the begin of a request of a host.

        Does nothing before the app is set up.
        """
        if self.is_orm_cache_setup:
            self.orm_cache.begin_request()

    def unit_ended(self) -> None:
        """Take notice that this thread's unit of work has ended; see
        :meth:`.OrmCache.unit_ended`."""
        self.orm_cache.unit_ended()

    def prefetch(self, *names: str, args: Iterable[Any] | None = None) -> None:
        """Fetch values of these properties from the shared tier, in one round trip.

        Values that the request tier or the process tier has are not fetched, and values
        that the shared tier does not have are not computed.

        :param names: names of orm-cached properties of the app.
        :param args: the arguments of the values, for properties that take arguments:
            ``app.prefetch('book', args=[1, 2, 3])``.
        :raises PropertyError: if the app has no such orm-cached property.
        :raises OutsideScopeError: outside of a request scope.
        """
        prefetch((self,), names, args)

    def mark_changed(self, *tables: TableName) -> None:
        """Report a change that nothing of the package can see; see
        :meth:`.OrmCache.mark_changed`.

        :param tables: names of tables, mapped classes, or ``Table`` objects.
        :raises UnknownTableError: if the application has no such table.
        :raises OutsideScopeError: outside of a request scope.
        """
        scope = scope_of(self)
        self.orm_cache.mark(scope, self.session(), tables)

    def evict(
        self,
        name: str | None = None,
        /,
        *args: Any,
        tags: Iterable[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Evict values of the current tenant by hand: ``app.evict('book', 3)``,
        ``app.evict('book')``, ``app.evict(tags=['table:books'])``.

        It is part of the scope's transaction, like any other change: others use the values until
        the session commits.

        :param name: an orm-cached property of the app.
        :param args: the arguments of one value; none: all values of the property.
        :param tags: evict all values that have any of these tags.
        :raises PropertyError: if the app has no such orm-cached property, or if neither a property
            nor tags are given.
        :raises ArgumentError: if the arguments do not fit the property.
        :raises UnknownTagError: if one is no tag.
        :raises OutsideScopeError: outside of a request scope.
        """
        if name is None and tags is None:
            raise PropertyError(
                "evict: name a property, as in evict('book', 3), or tags; evict_all() evicts "
                'everything'
            )
        if name is not None:
            self.orm_cache.evict(self, name, *args, **kwargs)
        if tags is not None:
            self.orm_cache.evict_tags(tags)

    def evict_all(self) -> None:
        """Evict all values of the current tenant; see :meth:`evict`."""
        self.orm_cache.evict_all()

    def refresh(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Evict one value and return it, computed anew; see :meth:`.OrmCache.refresh`."""
        return self.orm_cache.refresh(self, name, *args, **kwargs)

    # attributes that a host class may replace

    @host_attribute
    def observer(self) -> HostObserver | None:
        """The observer of a host that makes its sessions itself; by default that of its session
        manager, if it is not the package's."""
        if isinstance(self.session_manager, SessionManager):
            return None
        found = getattr(self.session_manager, 'observer', None)
        if not isinstance(found, HostObserver):
            raise ConfigurationError(
                f'{type(self).__qualname__}: the session manager {self.session_manager!r} is not '
                "the package's own, and nobody observes it: set its attribute `observer`, or that "
                'of the app, to observe(engine=..., sessions=..., metadata=..., schema_of=...)'
            )
        return found

    @host_attribute
    def orm_cache_settings(self) -> Mapping[str, Any]:
        """Settings of this app alone, beside those of its class."""
        return {}

    @host_attribute
    def mount_variables(self) -> Mapping[str, Any]:
        """The variables by which the values of a mounted app differ from those of others of its
        class, by name; by default those that it is mounted with. Read once per app."""
        return mount_variables(self)

    @host_attribute
    def session_manager(self) -> SessionManager:
        """The session manager of all tenants; by default made from the settings."""
        root: Any = self.root
        if root is not self:
            return root.session_manager  # type: ignore[no-any-return]
        if '_own_session_manager' not in vars(root):
            settings = root.own_settings()
            vars(root)['_own_session_manager'] = SessionManager(
                settings.dsn, settings.base, settings.engine_options
            )
        return vars(root)['_own_session_manager']  # type: ignore[no-any-return]

    @host_attribute
    def schema(self) -> str:
        """The schema of the current scope."""
        return scope_of(self).schema

    @HostAttribute
    def session(self) -> Callable[[], Session]:
        """A function that returns the current scope's session: ``app.session()``."""
        return scope_of(self).session

    @host_attribute
    def cache(self) -> CacheRegion:
        """A dogpile.cache region of the current tenant, for values cached by hand."""
        scope = scope_of(self)
        return scope.cache.shared_tier.region(scope.schema)

    @host_attribute
    def request_cache(self) -> MutableMapping[Any, Any]:
        """The request tier of the current scope."""
        return scope_of(self).tier

    @host_attribute
    def schema_cache(self) -> MutableMapping[str, Slot]:
        """The current tenant's part of the process tier."""
        return scope_of(self).process_tier

    def request(self, environ: Any) -> Any:
        """Make a request.

        Morepath does this before it commits the app for the first time. The app is
        committed here, so that the request class has its properties.
        """
        if not self.is_committed():
            self.commit()
        request = super().request(environ)
        remember(request)
        return request


HOST: dict[str, HostAttribute[Any]] = {
    name: value for name, value in vars(OrmCacheApp).items() if isinstance(value, HostAttribute)
}
