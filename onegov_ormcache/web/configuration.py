"""The configuration of an application class: its directives, its properties and its settings.

This module knows nothing of what an application does after its class is committed.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, ClassVar

import morepath
from dectate import ConflictError, directive
from dectate.config import create_code_info

from ..core.descriptors import CachedDescriptor, OrmCacheDescriptor
from ..core.policies import resolve_policy
from ..core.settings import SECTION
from ..database.tables import metadatas_of
from ..errors import ConfigurationError, PropertyConflictError
from .cache import descriptors_of
from .cached_views import CachedView
from .directives import (
    OrmCachedDirective,
    OrmCachedListing,
    Prefetch,
    PrefetchingHtmlAction,
    PrefetchingJsonAction,
    PrefetchingViewAction,
    PropertyAction,
    RequestCachedDirective,
    RequestCachedListing,
    Target,
    property_directive,
    refuse_existing,
)
from .mounting import RecordingMountAction
from .request import OrmCacheRequest, own_request_class
from .setting_sections import CheckedSettingSection, given_twice
from .settings import AppSettings

if TYPE_CHECKING:
    from morepath.types import SupportsItems


class ConfiguredApp(morepath.App):
    """An application class that declares cached properties; the base of :class:`.OrmCacheApp`.

    Dectate commits it, and each class derived from it, before the first request.
    """

    orm_cached = property_directive(OrmCachedDirective)
    request_cached = property_directive(RequestCachedDirective)
    _cached_property = directive(PropertyAction)
    _orm_cached_listing = directive(OrmCachedListing)
    _request_cached_listing = directive(RequestCachedListing)
    view = directive(PrefetchingViewAction)
    json = directive(PrefetchingJsonAction)
    html = directive(PrefetchingHtmlAction)
    mount = directive(RecordingMountAction)
    setting_section = directive(CheckedSettingSection)

    request_class: type[Any] = OrmCacheRequest

    # the names of the properties that directives have installed on the class
    _installed_properties: ClassVar[list[str]] = []

    #: What the views of the committed class prefetch.
    prefetches: ClassVar[list[Prefetch]] = []

    #: The views of the committed class whose responses are cached.
    cached_views: ClassVar[list[CachedView]] = []

    # configuration of the class

    @classmethod
    def init_settings(cls, settings: SupportsItems[str, SupportsItems[str, Any]]) -> None:
        """Give the class settings that were read from a file.

        They count like those of ``setting_section``: they override those of the base classes, and
        a setting that both give to one class is an error when the class is committed. Where a
        setting is an object, a text names it: ``'town.models:Base'``.

        :param settings: sections by name, each with its settings by name, as ``yaml.safe_load``
            returns them.
        :raises ConfigurationError: if they are no dictionary, or if the class is committed already
            and would not notice the settings of the cache.
        """
        caller = create_code_info(sys._getframe(1))
        if not hasattr(settings, 'items'):
            raise ConfigurationError(
                f'{cls.__qualname__}.init_settings: the settings are of the type '
                f'{type(settings).__name__}; expected a dictionary of sections (an empty file of '
                'YAML is None)'
            )
        for section, values in settings.items():
            if section == SECTION and cls.is_committed():
                raise ConfigurationError(
                    f'{cls.__qualname__}.init_settings: the class is committed already; give it '
                    'its settings before the first commit, request or scope'
                )
            made = cls.setting_section(section=section)
            made.code_info = caller  # else messages would name this file
            made(lambda values=values: values)

    @classmethod
    def clean(cls) -> None:
        """Remove the properties that an earlier commit has installed on the class, and give
        it a new request class. Dectate calls this when it commits the class.
        """
        super().clean()
        for name in vars(cls).get('_installed_properties', ()):
            delattr(cls, name)
        cls._installed_properties = []
        cls.prefetches = []
        cls.cached_views = []
        cls.request_class = own_request_class(cls)

    @classmethod
    def install_property(
        cls, target: Target, descriptor: CachedDescriptor[Any], where: str
    ) -> None:
        """Install a property on the class, or on its request class.

        :param target: ``'app'`` or ``'request'``.
        :param where: the property's name and the directive's file and line, for messages.
        :raises PropertyConflictError: if the class has an attribute of that name, other than
            a cached property that it inherits.
        """
        owner = cls if target == 'app' else cls.request_class
        refuse_existing(owner, descriptor, where)
        setattr(owner, descriptor.name, descriptor)
        if target == 'app':
            cls._installed_properties.append(descriptor.name)

    @classmethod
    def commit(cls) -> set[type[morepath.App]]:
        """Commit the configuration of this class and of the app classes mounted in it.

        :return: all these classes.
        :raises OrmCacheError: if a property, policy or setting is wrong.
        """
        try:
            discovered = super().commit()
        except ConflictError as error:
            if any(isinstance(action, PropertyAction) for action in error.actions):
                raise PropertyConflictError(f'Two properties of one name. {error}') from error
            if (told := given_twice(error, cls)) is not None:
                raise told from None
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
                    parameters = descriptor.parameters.names
                    resolve_policy(descriptor.cache_policy, tables, where, parameters)
            if issubclass(app_class, ConfiguredApp):
                # a request has the properties of all apps that the answering one is mounted in
                requests = (app_class.request_class, *(each.request_class for each in discovered))
                for views in app_class.prefetches:
                    views.check((app_class, *requests))
        return discovered

    @classmethod
    def read_settings(cls) -> AppSettings:
        """Return the validated settings of this class.

        :raises ConfigurationError: if a setting is unknown or wrong.
        """
        section = getattr(cls.config.setting_registry, SECTION)
        return AppSettings.read(vars(section), cls.__qualname__)


def _defaults() -> dict[str, Any]:
    return vars(AppSettings())


ConfiguredApp.setting_section(section=SECTION)(_defaults)
