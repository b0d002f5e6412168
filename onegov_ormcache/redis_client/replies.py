"""Replies of Redis that nobody has waited for yet.

A command can be sent without waiting for its reply: the caller reads that later
(:meth:`Reply.result`), or leaves it to the next command on the same connection
(:meth:`Reply.leave`). Redis executes the commands of a connection in their order.
"""

from __future__ import annotations

import logging
from collections import deque
from functools import cache
from typing import Any

import redis

log = logging.getLogger(__name__)

#: Connections that nobody has given back to their pools.
ABANDONED: deque[tuple[Any, Any]] = deque()


class Reply:
    """The reply to a command that was sent; nobody has waited for it yet.

    Made by :meth:`.Client.send`. It keeps the connection until :meth:`result` or :meth:`leave`.
    """

    def __init__(self, pool: Any, connection: Any, is_trial: bool) -> None:
        #: What :meth:`.Breaker.enter` has returned.
        self.is_trial = is_trial
        self._pool = pool
        self._connection = connection

    def result(self) -> Any:
        """Wait for the reply and return it.

        :raises redis.RedisError: if it is an error, if the connection is lost, and if this was
            called before.
        """
        connection, self._connection = self._connection, None
        if connection is None:
            raise redis.ConnectionError('the reply was not waited for to its end')
        try:
            return connection.read_response()
        finally:
            self._pool.release(connection)

    def leave(self, what: str) -> None:
        """Leave the reply to the next command on this connection. If it is an error, that is
        logged.

        :param what: what an error means, for the log.
        """
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.read_later(what)
            self._pool.release(connection)

    def __del__(self) -> None:
        # only after an interrupt; the pool's lock may be held just now, so the next caller of
        # `send()` gives the connection back
        if self._connection is not None:
            self._connection.disconnect()
            ABANDONED.append((self._pool, self._connection))


@cache
def reading_later(connection_class: Any) -> type:
    """Return a class of connections that read the replies nobody waits for before all others.

    A pool takes a connection on which there is something to read for a broken one, so that is
    read when the connection leaves the pool, too, as far as it has arrived.
    """

    class ReadingLater(connection_class):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            #: What an error would mean, for each reply that was not read yet.
            self._unread: deque[str] = deque()
            super().__init__(*arguments, **options)

        def read_later(self, what: str) -> None:
            self._unread.append(what)

        def can_read(self, *arguments: Any, **options: Any) -> bool:
            while self._unread:
                if not super().can_read():
                    return False
                self._read_unread()
            return bool(super().can_read(*arguments, **options))

        def read_response(self, *arguments: Any, **options: Any) -> Any:
            while self._unread:
                self._read_unread()
            return super().read_response(*arguments, **options)

        def disconnect(self, *arguments: Any, **options: Any) -> None:
            self._unread.clear()
            super().disconnect(*arguments, **options)

        def _read_unread(self) -> None:
            unread = list(self._unread)
            self._unread.popleft()
            try:
                super().read_response()
            except redis.ResponseError as error:
                log.warning('%s: %s', unread[0], error)
            except redis.RedisError as error:  # the connection is lost, and the others with it
                for what in unread:
                    log.warning('%s: %s', what, error)
                raise

    return ReadingLater
