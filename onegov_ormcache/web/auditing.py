"""The audit of what creators read of a request: a value must not depend on what it does not
vary by.

While the creator of an orm-cached property runs, the request has a class of its own, whose
attributes report their reads. At all other times it has its usual class, so that views pay
nothing for the audit. This module does not know what becomes of a report.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import ref

import morepath

from ..core.computing import report
from ..core.scope import RequestScope
from ..core.variants import role_of
from ..database.transactions import current_scope

#: The attributes of a request that differ by user, or that the client chooses.
WATCHED = ('identity', 'cookies', 'params', 'GET', 'POST')

# the last request that was made in this thread or task; it may have ended
_last_request: ContextVar[ref[morepath.Request]] = ContextVar('last_request')


class WatchedRequest:
    """The base class of a request's class while it is watched."""


class WatchedAttribute:
    """An attribute of a watched request, which reports its reads.

    :param name: the attribute's name.
    :param usual: the class that the request has while it is not watched.
    """

    def __init__(self, name: str, usual: type) -> None:
        self._name = name
        self._usual = usual

    def __get__(self, request: Any, owner: type) -> Any:
        if request is None:
            return self
        with of_class(request, self._usual):  # because one attribute may read another
            report_read(self._name)
            return getattr(request, self._name)

    def __set__(self, request: Any, value: object) -> None:
        with of_class(request, self._usual):
            setattr(request, self._name, value)

    def __delete__(self, request: Any) -> None:
        with of_class(request, self._usual):
            delattr(request, self._name)


def remember(request: morepath.Request) -> None:
    """Remember a request that was made, for creators of app properties: they may have other
    ways to it."""
    _last_request.set(ref(request))


@contextmanager
def watching(instance: object) -> Iterator[None]:
    """Report what is read of a request while the block runs.

    :param instance: the object whose creator runs: the request, or another object, beside which
        the last request is watched.
    """
    request: Any = instance
    if not isinstance(instance, morepath.Request):
        remembered = _last_request.get(None)
        request = remembered() if remembered is not None else None
    if request is None or isinstance(request, WatchedRequest):
        yield
        return
    with of_class(request, watched_class(type(request))):
        yield


@contextmanager
def of_class(request: Any, its_class: type) -> Iterator[None]:
    """Give a request another class while the block runs."""
    before = type(request)
    request.__class__ = its_class
    try:
        yield
    finally:
        request.__class__ = before


def watched_class(usual: Any) -> type:
    """Return the class that a request of a class has while it is watched; make it once."""
    found: type | None = vars(usual).get('_watched_class')
    if found is None:
        namespace: dict[str, Any] = {name: WatchedAttribute(name, usual) for name in WATCHED}
        namespace |= {'__module__': usual.__module__, '__qualname__': usual.__qualname__}
        found = usual._watched_class = type(usual.__name__, (WatchedRequest, usual), namespace)
    return found


def report_read(name: str) -> None:
    """Report that a creator has read an attribute of a request, unless its property varies by it.

    What a function ``vary`` covers is not known, so a property that has one is not reported. Its
    role covers the identity.

    :raises AuditError: if the setting ``audit`` is ``'error'``.
    """
    scope: RequestScope | None = current_scope.get()
    runs = scope.runs if scope is not None else ()
    run = next((run for run in reversed(runs) if not run.prop.declaration.is_request_cached), None)
    if scope is None or run is None:
        return
    varies = set(run.prop.declaration.varies)
    if varies - {role_of} or (varies and name == 'identity'):
        return
    report(
        scope.cache.settings.audit,
        run.prop,
        f'{run.prop.where} reads request.{name}, which its value does not vary by: what it '
        "computes for one request is returned to all; declare it with vary, or with by_role for "
        "the identity's role",
    )
