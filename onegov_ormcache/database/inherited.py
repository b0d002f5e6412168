"""Keeps a forked child from using the connections of its parent's pools.

The child forgets the pools that the package has made (see :mod:`onegov_ormcache.forks`). A host's
pools are its own, and a child can also have a pool or a transaction of its parent in its hands. So
each connection knows the process that has opened it. In another process it is taken out of its
pool and kept, but not closed: the driver would say goodbye to the server in the parent's name.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Engine, event
from sqlalchemy.exc import DisconnectionError

from ..errors import InheritedTransactionError
from ..forks import check

#: Connections of parents, so that nobody closes them.
KEPT: list[Any] = []


def guard_connections(engine: Engine) -> None:
    """Let each process use the connections that it has opened, and no others."""
    Guard(engine)


class Guard:
    """Asks for each use of an engine's connections whether they are those of this process.

    The dialect's methods are wrapped, because a pool pings a connection before it sends the event
    ``checkout``, and ends one without an event that could prevent that.
    """

    def __init__(self, engine: Engine) -> None:
        # a connection that was opened before is one of this process
        self._process = os.getpid()
        self._processes: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        # first of all, because SQLAlchemy's own listener rolls back what it has asked
        event.listen(engine, 'connect', self._connected, insert=True)
        event.listen(engine, 'checkout', self._checked_out)
        dialect: Any = engine.dialect
        dialect.do_ping = self._unless_inherited(dialect.do_ping, True)
        for name in ('do_rollback', 'do_close', 'do_terminate'):
            setattr(dialect, name, self._unless_inherited(getattr(dialect, name), None))
        dialect.do_commit = self._refusing(dialect.do_commit)

    def is_inherited(self, checkout: Any) -> bool:
        """Return whether the parent has opened a connection of the driver.

        :param checkout: the connection, or the pool's object for it.
        """
        connection = getattr(checkout, 'dbapi_connection', checkout)
        return self._processes.get(connection, self._process) != os.getpid()

    def _unless_inherited(self, method: Callable[..., Any], otherwise: Any) -> Callable[..., Any]:
        def guarded(connection: Any) -> Any:
            return otherwise if self.is_inherited(connection) else method(connection)

        return guarded

    def _refusing(self, method: Callable[..., None]) -> Callable[..., None]:
        def guarded(connection: Any) -> None:
            if self.is_inherited(connection):
                raise InheritedTransactionError(
                    'The transaction was begun by another process, of which this one is a fork, '
                    'so it is not committed here'
                )
            method(connection)

        return guarded

    def _connected(self, connection: Any, record: object) -> None:
        self._processes[connection] = os.getpid()

    def _checked_out(self, connection: Any, record: Any, checkout: Any) -> None:
        check()
        if self.is_inherited(connection):
            KEPT.append(connection)
            record.dbapi_connection = checkout.dbapi_connection = None
            raise DisconnectionError('This process is a fork of the one that has connected')

