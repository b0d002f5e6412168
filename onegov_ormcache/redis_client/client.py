"""The client of Redis: who asks it, how long, and what its errors become.

This module does not know what is stored.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MasterDownError,
    MaxConnectionsError,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
)
from redis.retry import Retry

from ..errors import ConfigurationError, StoreFull, StoreUnreachable
from .breaker import Breaker, NotAsked
from .replies import ABANDONED, Reply, reading_later

log = logging.getLogger('onegov_ormcache')

T = TypeVar('T')

#: Errors of a server that can't be used at present, whatever it is asked.
LOST = (
    redis.ConnectionError, redis.TimeoutError, ReadOnlyError, NoPermissionError, MovedError,
    AskError, ClusterDownError, MasterDownError,
)  # fmt: skip

#: How the texts begin of further errors of such a server, for which redis-py has no class.
LOST_CODES = 'MISCONF', 'NOREPLICAS'


OF_CLUSTER = (
    'it is a node of a cluster, which refuses the keys of others: give redis+cluster://HOST:PORT'
)

#: What an error means, if its own text does not say so to everybody.
MEANINGS = {
    MovedError: OF_CLUSTER,
    AskError: OF_CLUSTER,
    ReadOnlyError: 'it is a replica, which may only be read',
}


class Client(redis.Redis):
    """A client that never sends a command a second time by itself.

    Made by :func:`connect`. It sends nothing while its breaker is open.
    """

    breaker: Breaker
    #: True if it finds the node of each key.
    is_cluster = False

    def execute_command(self, *command: Any, **options: Any) -> Any:
        is_trial = self.breaker.enter()
        try:
            answer = super().execute_command(*command, **options)  # type: ignore[no-untyped-call]
        except redis.TimeoutError as error:
            self.breaker.failed(error)
            raise
        except redis.ResponseError as error:
            self.answered(error, is_trial)
            raise
        self.answered(None, is_trial)
        return answer

    def answered(self, error: redis.ResponseError | None, is_trial: bool) -> None:
        """Take notice that the server has answered, by an error or otherwise."""
        if error is None or not is_lost(error):
            self.breaker.succeeded(is_trial)

    def ask(self, question: Callable[[], T]) -> T:
        """Return the answer of Redis; ask a second time if the connection was lost.

        :param question: sends one command. It may be called twice, so a script that it runs
            needs a new token in each call; see :func:`connect`.
        :raises StoreUnreachable: for any failure.
        """
        try:
            try:
                return question()
            except NotAsked:
                raise
            except redis.ConnectionError:
                return question()
        except redis.RedisError as error:
            raise self.unreachable(error) from error

    def send(self, *command: str | bytes | int) -> Reply:
        """Send a command without waiting for its reply.

        :raises redis.RedisError: if it can't be sent.
        """
        is_trial = self.breaker.enter()
        while ABANDONED:
            owner, abandoned = ABANDONED.popleft()
            owner.release(abandoned)
        pool = self.connection_pool
        connection: Any = pool.get_connection()
        try:
            connection.send_command(*command)
        except BaseException:
            pool.release(connection)
            raise
        return Reply(pool, connection, is_trial)

    def unreachable(self, error: redis.RedisError) -> StoreUnreachable:
        """Return the package's own error for one of redis-py's, and open the breaker if it says
        that the server can't be used."""
        if is_lost(error):
            self.breaker.failed(error, reason(error))
        kind = StoreFull if isinstance(error, OutOfMemoryError) else StoreUnreachable
        return kind(
            f'Redis (setting redis_url): {reason(error)}; is the server up, and may we talk to it?'
        )


def connect(url: str, timeout: float) -> Client:
    """Return a client that never sends a command a second time by itself.

    A retry needs a new token. If a script ran twice with the same token, and another writer
    gave the tag a newer version in between, the second run would bring the old version back.

    :param url: the setting ``redis_url``.
    :param timeout: seconds to wait for the connection, and for each answer.
    :raises ConfigurationError: if the URL is of no kind that redis-py knows.
    """
    try:
        client: Any = Client.from_url(
            url,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 0),
        )
    except ValueError as error:
        raise ConfigurationError(f'redis_url {_without_password(url)!r}: {error}') from error
    client.breaker = Breaker(timeout)
    pool = client.connection_pool
    pool.connection_class = reading_later(pool.connection_class)
    assert isinstance(client, Client)
    return client


def reason(error: redis.RedisError) -> str:
    """Return what an error means, for people."""
    meaning = MEANINGS.get(type(error))
    return str(error) if meaning is None else f'{meaning} ({error})'


def is_lost(error: redis.RedisError) -> bool:
    """Return whether an error says that the server can't be used at present."""
    if isinstance(error, (MaxConnectionsError, NotAsked)):
        return False  # it was not asked: this process has too many requests, or waits for a trial
    return isinstance(error, LOST) or str(error).startswith(LOST_CODES)


def hash_tag(namespace: str, schema: str) -> str:
    """Return the prefix of all keys of a tenant.

    It is a hash tag: on a Redis Cluster, these keys are on one node.
    """
    return f'{{{namespace}:{schema}}}'


def _without_password(url: str) -> str:
    return url.split('@')[-1] if '@' in url else url
