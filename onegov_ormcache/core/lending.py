"""Lends a host's registry of sessions the session of a creator's run.

A ``scoped_session`` keeps its sessions in a registry, by thread or by a key of the host's choice.
This module knows where; it does not know who runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from sqlalchemy.orm import scoped_session
from sqlalchemy.util import ThreadLocalRegistry

from ..database.sessions import RunSession, close_session
from .runs import Run


@contextmanager
def lend(registry: scoped_session[Any], run: Run, session: RunSession) -> Iterator[None]:
    """Let a registry have a run's session in the place of the present one while the block runs.

    A run whose creator has put another session there is tainted, and loses its own.
    """
    place = Place(registry)
    before = place.get()
    place.put(session)
    try:
        yield
    finally:
        replaced = place.get()
        place.put(before)
        if replaced is not session:
            run.taint('it removed its session, or put another one in its place')
            run.session = None
            close_session(session)
            if replaced is not None and replaced is not before:
                close_session(replaced)


def finder(registry: scoped_session[Any]) -> Callable[[], Any]:
    """Return a function that returns the present session, or None, and makes none."""
    found: Any = registry.registry
    if isinstance(found, ThreadLocalRegistry):
        return partial(getattr, found.registry, 'value', None)
    values, key = found.registry, found.scopefunc
    return lambda: values.get(key())


class Place:
    """The place of the present session in a registry, also when the registry would look elsewhere
    later. Made for one look, or for one run.

    :param registry: its registry has public attributes for what is needed, but no methods.
    """

    def __init__(self, registry: scoped_session[Any]) -> None:
        found: Any = registry.registry
        self._values = found.registry
        self._is_local = isinstance(found, ThreadLocalRegistry)
        self._key = None if self._is_local else found.scopefunc()

    def get(self) -> Any:
        """Return the session; None if there is none."""
        if self._is_local:
            return getattr(self._values, 'value', None)
        return self._values.get(self._key)

    def put(self, session: Any) -> None:
        """Put a session there; None removes it."""
        if not self._is_local:
            if session is None:
                self._values.pop(self._key, None)
            else:
                self._values[self._key] = session
        elif session is None:
            del self._values.value
        else:
            self._values.value = session
