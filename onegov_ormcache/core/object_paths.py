"""Paths of objects, ``'module:name'``: how a settings file names a class or a function.

A file of YAML or TOML has texts, numbers and lists, and no objects. This module finds the objects
that texts name. It does not know the settings.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import ConfigurationError

#: A path: the dotted name of a module, a colon, and a dotted name within the module.
PATH = re.compile(r'(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<name>[^\W\d]\w*(\.[^\W\d]\w*)*)')

#: The options of ``sqlalchemy.create_engine`` that are classes or functions.
ENGINE_OPTIONS = frozenset(('creator', 'json_deserializer', 'json_serializer', 'poolclass'))


def objects_named(value: Any, where: str) -> Any:
    """Return a setting's value in which objects take the place of the texts that are their paths.

    :param value: a text, or a list or tuple whose items may be texts. Anything else is returned as
        it is.
    :param where: the setting, for messages.
    :raises ConfigurationError: if a text is no path, or if there is no such object.
    """
    if isinstance(value, str):
        return _object_named(value, f'{where} is {value!r}')
    if isinstance(value, (list, tuple)):
        return [objects_named(each, where) for each in value]
    return value


def options_named(options: Any, where: str) -> Any:
    """Return options of ``create_engine`` in which objects take the place of the texts that are
    their paths. Anything but a dictionary is returned as it is.

    :param where: the setting, for messages. They do not show the text, which may have a password.
    :raises ConfigurationError: see :func:`objects_named`.
    """
    if not isinstance(options, Mapping):
        return options
    return {
        name: _object_named(each, f'{where}.{name} is not shown')
        if name in ENGINE_OPTIONS and isinstance(each, str)
        else each
        for name, each in options.items()
    }


def _object_named(path: str, told: str) -> Any:
    """Return the object of a path; import its module, if that is not imported yet.

    :param told: what messages say of the setting.
    """
    parts = PATH.fullmatch(path)
    if parts is None:
        raise ConfigurationError(
            f"{told}; a text here is the path of an object, module:name, as in 'town.models:Base'"
        )
    module = _module(parts['module'], told)
    try:
        return attrgetter(parts['name'])(module)
    except AttributeError:
        raise ConfigurationError(
            f'{told}: the module {parts["module"]!r} has no {parts["name"]!r}'
        ) from None


def _module(name: str, told: str) -> ModuleType:
    try:
        return _main_as(name) or import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f'{name}.'.startswith(f'{error.name}.'):
            raise ConfigurationError(f'{told}: importing {name!r} failed: {error}') from error
        raise ConfigurationError(f'{told}: there is no module {error.name!r}') from None
    except Exception as error:
        # its message is not repeated: whatever the module was doing, it may have a password
        kind = type(error).__name__
        raise ConfigurationError(f'{told}: importing {name!r} raised {kind}') from error


def _main_as(name: str) -> ModuleType | None:
    """Return the running program, if it is the module of this name; else None.

    To import the file of the running program would run it again, and make each of its classes a
    second time.
    """
    main = sys.modules.get('__main__')
    if main is None or name in sys.modules:
        return None
    spec = getattr(main, '__spec__', None)
    if spec is not None:  # python -m name
        return main if spec.name == name else None
    file, found = getattr(main, '__file__', None), find_spec(name)
    if file is None or found is None or found.origin is None:
        return None
    return main if Path(found.origin).resolve() == Path(file).resolve() else None
