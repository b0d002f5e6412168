"""The application class: directives, settings, and what a root app owns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from contextlib import AbstractContextManager, contextmanager
from threading import Lock
from typing import Any, ClassVar

import morepath
from dectate import ConflictError, directive
from dogpile.cache import CacheRegion
from sqlalchemy.orm import Session

from ..core.descriptors import CachedDescriptor, OrmCacheDescriptor, scope_of
from ..core.policies import resolve_policy
from ..core.prefetching import prefetch
from ..core.recording import CacheEvent
from ..core.scope import RequestScope
from ..core.settings import SECTION
from ..database.session_manager import SessionManager, metadatas_of
from ..errors import ConfigurationError, OrmCacheError, PropertyConflictError
from ..tiers.process import Slot
from .cache import ATTRIBUTE, AppCache, descriptors_of
from .directives import (
    OrmCachedDirective,
    PrefetchingHtmlAction,
    PrefetchingJsonAction,
    PrefetchingViewAction,
    PropertyAction,
    RequestCachedDirective,
    Target,
    refuse_existing,
)
from .host import HostAttribute
from .request import OrmCacheRequest, own_request_class
from .settings import AppSettings

_SETUP = Lock()

class OrmCacheApp(morepath.App):
    """A Morepath application with orm-cached and request-cached properties.

    Derive your root app from it, and those mounted apps that have such
    properties. The root app sets itself up when the middleware wraps it, or at
    the first ``request_scope``; it lives as long as the process, or until
    :meth:`close_orm_cache`.
    """

    orm_cached = directive(OrmCachedDirective)
    request_cached = directive(RequestCachedDirective)
    _cached_property = directive(PropertyAction)
    view = directive(PrefetchingViewAction)
    json = directive(PrefetchingJsonAction)
    html = directive(PrefetchingHtmlAction)

    request_class: type[Any] = OrmCacheRequest

    # the names of what directives have installed on the class
    _installed_properties: ClassVar[list[str]] = []

    #: Whether :meth:`setup_orm_cache` has run.
    is_orm_cache_setup = False

    # when the class is committed

    @classmethod
    def clean(cls) -> None:
        """Undo what an earlier commit has installed on the class."""
        super().clean()
        for name in vars(cls).get('_installed_properties', ()):
            delattr(cls, name)
        cls._installed_properties = []
        cls.request_class = own_request_class(cls)

    @classmethod
    def install_property(
        cls, target: Target, descriptor: CachedDescriptor[Any], where: str
    ) -> None:
        """Install a property on the class, or on its request class.

        :raises PropertyConflictError: if there is an attribute of that name.
        """
        owner = cls if target == 'app' else cls.request_class
        refuse_existing(owner, descriptor, where)
        setattr(owner, descriptor.name, descriptor)
        if target == 'app':
            cls._installed_properties.append(descriptor.name)

    @classmethod
    def commit(cls) -> set[type[morepath.App]]:
        """Commit the configuration of this class and of those mounted in it.

        :raises OrmCacheError: if a property, policy or setting is wrong.
        """
        try:
            discovered = super().commit()
        except ConflictError as error:
            if any(isinstance(action, PropertyAction) for action in error.actions):
                raise PropertyConflictError(f'Two properties of one name. {error}') from error
            raise
        settings = cls.read_settings()
        tables: set[str] | None = None
        if settings.base is not None:
            tables = {name for m in metadatas_of(settings.base) for name in m.tables}
        for app_class in discovered:
            for descriptor, owner in descriptors_of(app_class):
                where = f'{owner.__qualname__}.{descriptor.name} ({descriptor.location})'
                refuse_existing(owner, descriptor, where)
                if tables is not None and isinstance(descriptor, OrmCacheDescriptor):
                    resolve_policy(descriptor.cache_policy, tables, where)
        return discovered

    @classmethod
    def read_settings(cls) -> AppSettings:
        """The validated settings of this class.

        :raises ConfigurationError: if one is unknown or wrong.
        """
        section = getattr(cls.config.setting_registry, SECTION)
        return AppSettings.read(vars(section), cls.__qualname__)

    # when the root app is set up

    def setup_orm_cache(self) -> None:
        """Connect to database and tag store, and to the session manager's signals.

        The middleware and ``request_scope`` do it if it was not done.

        :raises OrmCacheError: if it was done, if this is no root app, if a server
            can't be reached, or if a setting is missing.
        """
        if self.is_orm_cache_setup:
            raise OrmCacheError(f'{type(self).__qualname__} is set up already')
        if self.parent is not None:
            raise OrmCacheError(f'{type(self).__qualname__} is mounted; set its root app up')
        if not self.is_committed():
            self.commit()
        app_classes = type(self).mounted_app_classes()
        cache = AppCache(self.read_settings(), self.session_manager, app_classes)
        vars(self)[ATTRIBUTE] = cache
        self.is_orm_cache_setup = True

    def close_orm_cache(self) -> None:
        """Give all connections back; the app can be set up again."""
        if self.is_orm_cache_setup:
            self.orm_cache.close()
            del vars(self)[ATTRIBUTE]
            vars(self).pop('_own_session_manager', None)
            self.is_orm_cache_setup = False

    def ensure_orm_cache(self) -> AppCache:
        """Return the root app's cache; set the root app up if it was not."""
        root = self.root
        if not isinstance(root, OrmCacheApp):
            raise ConfigurationError(
                f'The root app {type(root).__qualname__} must derive from OrmCacheApp, '
                'because what lives longer than a request belongs to it'
            )
        if not root.is_orm_cache_setup:
            with _SETUP:
                if not root.is_orm_cache_setup:
                    root.setup_orm_cache()
        return root.orm_cache

    @property
    def orm_cache(self) -> AppCache:
        """The root app's cache.

        :raises OrmCacheError: if the root app is not set up.
        """
        cache: AppCache | None = vars(self.root).get(ATTRIBUTE)
        if cache is None:
            raise OrmCacheError(f'{type(self.root).__qualname__} is not set up')
        return cache

    def recording(self) -> AbstractContextManager[list[CacheEvent]]:
        """Record what the cache does in all threads while the block runs.

        :return: the events so far, oldest first.
        """
        return self.ensure_orm_cache().recording()

    @property
    def orm_cache_descriptors(self) -> Iterator[OrmCacheDescriptor[Any]]:
        """The orm-cached properties of the app class and its request class."""
        for descriptor, _ in descriptors_of(type(self)):
            if isinstance(descriptor, OrmCacheDescriptor):
                yield descriptor

    def descriptor_bound_orm_change_handler(
        self, descriptor: OrmCacheDescriptor[Any]
    ) -> Callable[[str, object], None]:
        """A handler for the session manager's signals that evicts one property.

        The package connects its own; hosts may use this for signals of theirs.

        :return: ``handler(schema, obj)``: if the property's policy concerns the
            object's tables, or a function of it says so, the property is evicted
            when the object's transaction commits.
        """
        cache = self.ensure_orm_cache()
        prop = cache.property_of(descriptor, type(self))

        def handle_orm_change(schema: str, obj: object) -> None:
            cache.handle_change(schema, obj, prop)

        return handle_orm_change

    # scopes

    @contextmanager
    def request_scope(self, schema: str | None = None) -> Iterator[RequestScope]:
        """Open a request scope for a block: scripts, tests.

        What the block does not commit is rolled back.

        :param schema: the tenant, created if there is none; by default the
            ``schema`` of a host class that has one.
        :raises InvalidSchemaError: if no tenant may have this name.
        """
        if schema is None and not HOST['schema'].is_provided(self):
            raise ConfigurationError('request_scope needs a schema: app.request_scope("main")')
        scope = self.open_scope(self.schema if schema is None else schema, create=True)
        with scope.active():
            try:
                yield scope
            finally:
                scope.close()

    def open_scope(self, schema: str, *, create: bool) -> RequestScope:
        """A scope, not yet current; whoever opens it closes it."""
        cache = self.ensure_orm_cache()

        def provided(name: str) -> Any:
            return getattr(self, name) if HOST[name].is_provided(self) else None

        return cache.open_scope(
            schema,
            create=create,
            request_tier=provided('request_cache'),
            process_tier=provided('schema_cache'),
        )

    def prefetch(self, *names: str) -> None:
        """Fetch these properties of the app in one round trip, as far as the shared tier
        has what this request and process do not. Nothing is computed.

        :raises PropertyError: if the app has no such orm-cached property.
        """
        prefetch((self,), names)

    # what a host may provide of its own

    @HostAttribute
    def session_manager(self) -> SessionManager:
        """Sessions for all tenants; by default made of the settings."""
        root: Any = self.root
        if root is not self:
            return root.session_manager  # type: ignore[no-any-return]
        if '_own_session_manager' not in vars(root):
            settings = self.read_settings()
            vars(root)['_own_session_manager'] = SessionManager(
                settings.dsn, settings.base, settings.engine_options
            )
        return vars(root)['_own_session_manager']  # type: ignore[no-any-return]

    @HostAttribute
    def schema(self) -> str:
        """The current scope's schema."""
        return scope_of(self).schema

    @HostAttribute
    def session(self) -> Callable[[], Session]:
        """``app.session()``: the current scope's session."""
        return scope_of(self).session

    @HostAttribute
    def cache(self) -> CacheRegion:
        """A dogpile.cache region of the current tenant."""
        scope = scope_of(self)
        return scope.cache.shared_tier.region(scope.schema)

    @HostAttribute
    def request_cache(self) -> MutableMapping[Any, Any]:
        """The request tier: values of this scope."""
        return scope_of(self).tier

    @HostAttribute
    def schema_cache(self) -> MutableMapping[str, Slot]:
        """The current tenant's part of the process tier."""
        return scope_of(self).process_tier

    def request(self, environ: Any) -> Any:
        """Make a request; the properties are installed by then."""
        if not self.is_committed():
            self.commit()
        return super().request(environ)


HOST: dict[str, HostAttribute[Any]] = {
    name: value for name, value in vars(OrmCacheApp).items() if isinstance(value, HostAttribute)
}


def _defaults() -> dict[str, Any]:
    return vars(AppSettings())


OrmCacheApp.setting_section(section=SECTION)(_defaults)
