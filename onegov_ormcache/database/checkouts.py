"""Replaces a connection that the server has closed, when it leaves the pool.

A server that was restarted, or an administrator, closes the connections that wait in the pool. A
closed connection has something to read: its end, and maybe a last message. One that is open has
nothing, as nobody has asked it anything. So a look at the socket, which takes no round trip, finds
most connections healthy. Only one with something to read is asked whether it still works, because
it may be a notification. This module knows psycopg's connections. It does not know what they are
used for.
"""

from __future__ import annotations

import select
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.exc import DisconnectionError

from .driver import DRIVER


def replace_closed(engine: Engine) -> None:
    """Let no connection leave the engine's pool that its server has closed; does nothing for
    other drivers than psycopg.

    A server that does not answer at all, because the network is cut, is not noticed.
    """
    if engine.dialect.driver != DRIVER:
        return
    error_class = engine.dialect.loaded_dbapi.Error

    def checked_out(connection: Any, record: object, checkout: object) -> None:
        try:
            if has_something_to_read(connection):
                engine.dialect.do_ping(connection)
        except error_class as error:
            # all connections in the pool are older than this, so each is asked then
            raise DisconnectionError(str(error)) from error

    event.listen(engine, 'checkout', checked_out)


def is_closed(connection: Any, error_class: type[Exception]) -> bool:
    """Return whether a connection in AUTOCOMMIT that waits was closed, by server or client.

    :param error_class: of the errors of its driver.
    """
    try:
        if has_something_to_read(connection):
            connection.execute('SELECT 1')
    except error_class:
        return True
    return False


def has_something_to_read(connection: Any) -> bool:
    """Return whether the server has sent something that was not read yet, or has closed the
    connection.

    :raises psycopg.Error: if the client has closed it.
    """
    file: int = connection.fileno()
    if not hasattr(select, 'poll'):
        return bool(select.select([file], [], [], 0)[0])
    poll = select.poll()  # select() knows no files above 1023
    poll.register(file, select.POLLIN)
    return bool(poll.poll(0))
