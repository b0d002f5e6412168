"""Loads an application by its dotted path, as WSGI servers do.

This module knows the ways in which programs hold a cache. It does not know what is done with it.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from types import ModuleType
from typing import Any

from ..core.cache import OrmCache
from ..core.descriptors import ATTRIBUTE
from ..errors import OrmCacheError, SecondProcessError

#: ``module:attribute``, where the attribute may have dots, and be called.
PATH = re.compile(r'(?P<module>[\w.]+):(?P<attribute>[\w.]+)(?P<call>\(\))?')

#: The attributes by which WSGI middlewares know the application that they wrap.
WRAPPED = ('app', 'application', 'wsgi_app', '__wrapped__')

#: The most middlewares around an application.
MOST_WRAPPED = 10


class NoApplication(OrmCacheError, LookupError):
    """A dotted path leads to no application, or to one that can't be loaded."""


class OnlyInMemory(OrmCacheError):
    """An application keeps everything in its process's memory, where no other process sees it."""


@dataclass(frozen=True)
class Loaded:
    """An application that was loaded."""

    cache: OrmCache
    #: The root app, or what else has the cache; the cache itself if there is nothing else.
    instance: Any


@contextmanager
def loaded(path: str, *, shared: bool) -> Iterator[Loaded]:
    """Load an application for the time of a ``with`` block, and close its cache then.

    :param path: ``module:attribute``: an app class or app, a WSGI application around one, an
        ``OrmCache``, an object that has one, or a function that returns any of these. The module
        may be in the working directory.
    :param shared: refuse an application whose cache no other process sees.
    :raises NoApplication: if the path is wrong, or the module raises an error.
    :raises OnlyInMemory: see ``shared``.
    :raises OrmCacheError: if the application's configuration is wrong, or a server that it needs
        at the start can't be reached.
    """
    with ExitStack() as stack:
        try:
            found = _found(path)
            if hasattr(found, 'ensure_orm_cache'):
                stack.callback(found.close_orm_cache)
                cache = _set_up(found, shared)
            else:
                cache = found if isinstance(found, OrmCache) else getattr(found, ATTRIBUTE)
                stack.callback(cache.close)
        except SecondProcessError as error:
            if not shared:
                raise
            raise _only_in_memory() from error
        if shared:
            _refuse_memory(cache.tags.single_process)
        yield Loaded(cache, found)


def _set_up(app: Any, shared: bool) -> OrmCache:
    """Return the cache of an app, which is set up first.

    :raises OrmCacheError: if that is not possible.
    """
    try:
        if not app.is_committed():
            app.commit()
        if shared and not app.is_orm_cache_setup:
            # before it is set up, which would claim the database
            _refuse_memory(app.own_settings().redis_url is None)
        cache: OrmCache = app.ensure_orm_cache()
    except OrmCacheError:
        raise
    except Exception as error:  # dectate's, for example
        raise OrmCacheError(f'{_shown(app)} can not be set up: {_raised(error)}') from error
    return cache


def _attribute(path: str) -> Any:
    """Return what a dotted path leads to."""
    parts = PATH.fullmatch(path)
    if parts is None:
        raise NoApplication(
            f'{path!r} is no path of an application; expected module:attribute, as in '
            'town.wsgi:application'
        )
    if os.getcwd() not in sys.path and '' not in sys.path:
        sys.path.insert(0, os.getcwd())
    found: Any = _imported(parts['module'])
    for name in parts['attribute'].split('.'):
        holder = found
        try:
            found = getattr(holder, name)
        except AttributeError as error:
            hint = _hint(name, holder)
            raise NoApplication(f'{_shown(holder)} has no {name!r}{hint}') from error
        except OrmCacheError:
            raise
        except Exception as error:
            raise NoApplication(f'{path}: {_raised(error)}') from error
    return _called(found, path) if parts['call'] else found


def _imported(name: str) -> ModuleType:
    try:
        return import_module(name)
    except OrmCacheError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and name.startswith(str(error.name)):
            raise NoApplication(
                f'there is no module {error.name!r} in the working directory, and none is '
                'installed'
            ) from error
        raised = _raised(error)
        raise NoApplication(f'the module {name!r} can not be imported: {raised}') from error


def _found(path: str) -> Any:
    """Return the app, or whatever has the cache, to which a dotted path leads."""
    found = _attribute(path)
    try:
        return _application(found, path)
    except OrmCacheError:
        raise
    except Exception as error:  # of a proxy, for example, which stands for something in a request
        raise NoApplication(f'{path} can not be looked at: {_raised(error)}') from error


def _application(found: Any, path: str) -> Any:
    """Return the app, or whatever has the cache, that an object is or wraps."""
    if isinstance(found, type):
        if not hasattr(found, 'ensure_orm_cache') and not issubclass(found, OrmCache):
            raise NoApplication(f'{path} is a class, and none of applications with a cache')
        found = _called(found, path)
    for _ in range(MOST_WRAPPED):
        if isinstance(found, OrmCache) or hasattr(found, 'ensure_orm_cache'):
            return found
        if isinstance(getattr(found, ATTRIBUTE, None), OrmCache):
            return found
        inner = next((getattr(found, name) for name in WRAPPED if hasattr(found, name)), None)
        if inner is None and callable(found) and hasattr(found, '__code__'):
            inner = _called(found, path)
        if inner is None:
            break
        found = inner
    raise NoApplication(
        f'{path} is {_shown(found)}; expected an OrmCacheApp, an OrmCacheMiddleware, an OrmCache, '
        'or a function without arguments that returns one'
    )


def _called(function: Any, path: str) -> Any:
    try:
        return function()
    except OrmCacheError:
        raise
    except (Exception, SystemExit) as error:
        raise NoApplication(f'{path} can not be called: {_raised(error)}') from error


def _raised(error: BaseException) -> str:
    """Return what an error says, and where it was raised, in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename != __file__ and 'importlib' not in
           frame.filename]  # fmt: skip
    place = f' ({own[-1].filename}:{own[-1].lineno})' if own else ''
    return f'{type(error).__name__}: {error}{place}'


def _shown(holder: object) -> str:
    if isinstance(holder, ModuleType):
        return f'the module {holder.__name__!r}'
    return f'an object of the class {type(holder).__qualname__}'


def _hint(name: str, holder: object) -> str:
    """Return a part of a sentence that names what may be meant."""
    near = get_close_matches(name, [each for each in dir(holder) if each[:1] != '_'], 1)
    if near:
        return f'; did you mean {near[0]!r}?'
    if isinstance(holder, ModuleType) and hasattr(holder, '__path__'):
        return '; it is a package: name one of its modules'
    return ''


def _refuse_memory(is_in_memory: bool) -> None:
    if is_in_memory:
        raise _only_in_memory()


def _only_in_memory() -> OnlyInMemory:
    return OnlyInMemory(
        'the application keeps all in the memory of its own process (redis_url is not set), which '
        'no other process can see: set redis_url, or look at it in the process itself'
    )
