"""The connection to Redis, and the prefix of all keys there.

The tag store and the shared tier use one server through one client. Neither knows the
other, so this module has what both need. It does not know what they store.

A command can be sent without waiting for its reply: the caller reads that later
(:meth:`Reply.result`), or leaves it to the next command on the same connection
(:meth:`Reply.leave`). Redis executes the commands of a connection in their order.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from .errors import StoreUnreachable

log = logging.getLogger('onegov_ormcache')

T = TypeVar('T')


def connect(url: str, timeout: float) -> redis.Redis:
    """Return a client that never sends a command a second time by itself.

    A retry needs a new token. If a script ran twice with the same token, and another writer
    gave the tag a newer version in between, the second run would bring the old version back.

    :param url: the setting ``redis_url``.
    :param timeout: seconds to wait for the connection, and for each answer.
    :raises StoreUnreachable: if the URL is of no kind that redis-py knows.
    """
    try:
        client = redis.Redis.from_url(
            url,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 0),
        )
    except ValueError as error:
        raise StoreUnreachable(f'redis_url {_without_password(url)!r}: {error}') from error
    pool = client.connection_pool
    pool.connection_class = reading_later(pool.connection_class)
    return client


def ask(question: Callable[[], T]) -> T:
    """Return the answer of Redis; ask a second time if the connection was lost.

    :param question: sends one command. It may be called twice, so a script that it runs
        needs a new token in each call; see :func:`connect`.
    :raises StoreUnreachable: for any failure.
    """
    try:
        try:
            return question()
        except redis.ConnectionError:
            return question()
    except redis.RedisError as error:
        raise unreachable(error) from error


def unreachable(error: redis.RedisError) -> StoreUnreachable:
    """Return the package's own error for one of redis-py's."""
    return StoreUnreachable(
        f'Redis (setting redis_url): {error}; is the server up, and may we talk to it?'
    )


#: Connections that nobody has given back to their pools.
ABANDONED: deque[tuple[Any, Any]] = deque()


class Reply:
    """The reply to a command that was sent; nobody has waited for it yet.

    Made by :func:`send`. It keeps the connection until :meth:`result` or :meth:`leave` is called.
    """

    def __init__(self, client: redis.Redis, connection: Any) -> None:
        self._client = client
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
            self._client.connection_pool.release(connection)

    def leave(self, what: str) -> None:
        """Leave the reply to the next command on this connection. If it is an error, that is
        logged.

        :param what: what an error means, for the log.
        """
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.read_later(what)
            self._client.connection_pool.release(connection)

    def __del__(self) -> None:
        # only after an interrupt; the pool's lock may be held just now, so the next caller of
        # `send()` gives the connection back
        if self._connection is not None:
            self._connection.disconnect()
            ABANDONED.append((self._client.connection_pool, self._connection))


def send(client: redis.Redis, *command: str | bytes | int) -> Reply:
    """Send a command without waiting for its reply.

    :param client: made by :func:`connect`.
    :raises redis.RedisError: if it can't be sent.
    """
    while ABANDONED:
        owner, abandoned = ABANDONED.popleft()
        owner.release(abandoned)
    pool = client.connection_pool
    connection: Any = pool.get_connection()
    try:
        connection.send_command(*command)
    except BaseException:
        pool.release(connection)
        raise
    return Reply(client, connection)


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


def hash_tag(namespace: str, schema: str) -> str:
    """Return the prefix of all keys of a tenant.

    It is a hash tag: on a Redis Cluster, these keys are on one node.
    """
    return f'{{{namespace}:{schema}}}'


def _without_password(url: str) -> str:
    return url.split('@')[-1] if '@' in url else url
