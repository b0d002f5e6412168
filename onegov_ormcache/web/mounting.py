"""Mounted apps: the variables with which an app is mounted are part of its values' keys.

Two apps of one class that are mounted with other variables, ``wiki/a`` and ``wiki/b``, have values
of their own. This module makes the part of a key that tells them apart. It does not know the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from hashlib import sha256
from typing import Any

import morepath
from morepath.directive import MountAction, PathAction
from morepath.path import get_arguments

from ..core.variants import key_text
from ..errors import VariantError

#: The attribute in which an app keeps the variables that its mount was called with.
RECORDED = '_orm_cache_mounted_with'

#: The attribute in which an app keeps its part of a key.
PART = '_orm_cache_mounted_as'

#: The arguments of a mount that are no variables: Morepath's own.
NO_VARIABLES = ('app', 'request')

#: The number of characters from which on a key has a hash instead: a URL has up to thousands.
LONGEST = 200


class RecordingMountAction(MountAction):
    """``App.mount``; each app that it makes remembers the variables that it was made with.

    Morepath calls one function for the path of a request and for ``app.child(...)``. It has the
    variables as the converters have read them, those of the URL's query included.
    """

    group_class = PathAction

    def perform(self, obj: Callable[..., Any], path_registry: Any) -> None:
        super().perform(recording(obj), path_registry)


def recording(make_app: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that makes an app as this one does, and records its variables.

    Morepath reads the arguments and their defaults from the signature, which it keeps.
    """
    # Morepath passes the default of what a URL lacks; `child` passes nothing
    defaults = get_arguments(make_app, NO_VARIABLES)

    @wraps(make_app, updated=())
    def make_and_record(**variables: Any) -> Any:
        app = make_app(**variables)
        if isinstance(app, morepath.App):
            given = {**defaults, **variables}
            vars(app)[RECORDED] = {n: v for n, v in given.items() if n not in NO_VARIABLES}
            vars(app).pop(PART, None)  # an app that was mounted before
        return app

    return make_and_record


def mount_variables(app: morepath.App) -> Mapping[str, Any]:
    """Return the variables that an app is mounted with, by name.

    An app that another program has made, or that is mounted by an app without
    :class:`RecordingMountAction`, is asked for them as for a link to it: by the option
    ``variables`` of the mount, or else by its attributes of these names.

    :return: no variables for a root app.
    :raises VariantError: if the app does not tell them.
    """
    recorded: Mapping[str, Any] | None = vars(app).get(RECORDED)
    if recorded is not None:
        return recorded
    parent: Any = app.parent
    if parent is None:
        return {}
    try:
        return parent._path_variables(app) or {}
    except AttributeError as error:
        raise VariantError(
            f'{type(app).__qualname__} is mounted in {type(parent).__qualname__}, and its '
            f'variables are not known: {error}; give it attributes of their names or an attribute '
            'mount_variables, or derive the app that it is mounted in from OrmCacheApp'
        ) from error


def mounted_as(app: morepath.App) -> str:
    """Return the part of a key that tells apps of one class apart, the same in each process.

    :return: the variables of the app, and of all apps that it is mounted in, each with the class;
        ``''`` if there are none. Those of one app are found once.
    :raises VariantError: if a variable can't be part of a key.
    """
    if app.parent is None:
        return ''
    part: str | None = vars(app).get(PART)
    if part is None:
        part = vars(app)[PART] = _part(app)
    return mounted_as(app.parent) + part


def _part(app: morepath.App) -> str:
    own: Any = app
    has_own = hasattr(type(app), 'mount_variables')  # else it does not derive from OrmCacheApp
    variables: Mapping[str, Any] = own.mount_variables if has_own else mount_variables(app)
    if not variables:
        return ''
    texts = [f'{name}={_text(app, name, value)}' for name, value in sorted(variables.items())]
    text = f'{type(app).__module__}.{type(app).__qualname__}({",".join(texts)})'
    return '@' + (text if len(text) <= LONGEST else sha256(text.encode()).hexdigest())


def _text(app: morepath.App, name: str, value: Any) -> str:
    return key_text(
        _immutable(value),
        f'{type(app).__qualname__} is mounted with {name}={value!r}: mount it with a key instead, '
        'or give it an attribute mount_variables that says by what its values differ. A variable',
    )


def _immutable(value: Any) -> Any:
    """Return lists, and Morepath's mapping of extra parameters, as tuples."""
    if isinstance(value, (list, tuple)):
        return tuple(map(_immutable, value))
    if isinstance(value, dict):
        items = sorted(value.items(), key=lambda item: repr(item[0]))
        return tuple((key, _immutable(each)) for key, each in items)
    return value
