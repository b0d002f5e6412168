"""Applications and caches for one test: on the embedded default, with settings of their own.

A class of applications is committed once, with the settings that it has then. So a test gets a
class derived from it, whose commit reads all settings anew. This module imports no web framework:
whoever has an app class has imported it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from ..core.cache import OrmCache
from ..core.settings import SECTION
from ..errors import ConfigurationError

AppT = TypeVar('AppT')

#: Settings of an application that are for servers, as they are on the embedded default.
EMBEDDED: dict[str, Any] = {
    'redis_url': None,
    'listen': False,
    'listen_dsn': None,
    'engine_options': None,
    'on_outage': None,
}


def configured(app_class: type[AppT], **settings: Any) -> type[AppT]:
    """Return a class derived from an app class, with other settings.

    It has the name of that class, so its values have the same keys. When it is committed, the
    functions of the class's settings are called anew: what ``monkeypatch`` has changed for them is
    what counts.

    :param app_class: a class derived from :class:`.OrmCacheApp`.
    :param settings: of the section ``orm_cache``; they come before those of the class.
    :raises ConfigurationError: if it is no such class.
    """
    if not (isinstance(app_class, type) and hasattr(app_class, 'ensure_orm_cache')):
        raise ConfigurationError(
            f'expected a class derived from OrmCacheApp, and not {app_class!r:.200}; a program '
            'without Morepath has an OrmCache: open_cache(base=...), or the fixture ormcache'
        )
    names = {
        '__module__': app_class.__module__,
        '__qualname__': app_class.__qualname__,
        '__doc__': app_class.__doc__,
    }
    derived: Any = type(app_class)(app_class.__name__, (app_class,), names)  # type: ignore[misc]
    derived.setting_section(section=SECTION)(lambda: settings)
    made: type[AppT] = derived
    return made


@contextmanager
def open_app(
    app_class: type[AppT], folder: str | PathLike[str] | None = None, **settings: Any
) -> Iterator[AppT]:
    """Open a root app for a ``with`` block: commit its class, set it up, and close it at the end.

    It uses the embedded default, whatever servers its class names: an SQLite file per tenant, and
    memory. With the setting ``dsn``, the settings for servers are those of its class, if they are
    not given, too.

    :param app_class: a class derived from :class:`.OrmCacheApp`; see :func:`configured`.
    :param folder: the folder of the SQLite files; by default one that is removed at the end.
    :param settings: of the section ``orm_cache``; they come before those of the class.
    :raises ConfigurationError: if a setting is unknown or wrong, or if it is no such class.
    """
    with _embedded(folder, settings) as chosen:
        app: Any = configured(app_class, **chosen)()
        app.setup_orm_cache()
        try:
            yield app
        finally:
            app.close_orm_cache()


@contextmanager
def open_cache(
    folder: str | PathLike[str] | None = None, **settings: Any
) -> Iterator[OrmCache]:
    """Open an :class:`.OrmCache` for a ``with`` block, and close it at the end.

    :param folder: see :func:`open_app`.
    :param settings: those of :class:`.OrmCache`, ``base`` for example; or its other arguments, if
        a host makes the sessions.
    :raises ConfigurationError: if a setting is unknown or wrong.
    """
    with _embedded(folder, settings) as chosen, OrmCache(**chosen) as cache:
        yield cache


@contextmanager
def _embedded(
    folder: str | PathLike[str] | None, settings: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yield the settings, with those of the embedded default if they name no database."""
    if 'dsn' in settings:
        yield settings
    elif folder is not None:
        yield {**EMBEDDED, 'dsn': f'sqlite:///{folder}', **settings}
    else:
        with TemporaryDirectory(prefix='ormcache-') as temporary:
            yield {**EMBEDDED, 'dsn': f'sqlite:///{temporary}', **settings}
