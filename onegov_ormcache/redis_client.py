"""The connection to Redis, and the prefix of all keys there.

The tag store and the shared tier use one server through one client. Neither knows the
other, so this module has what both need. It does not know what they store.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from .errors import StoreUnreachable

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
        return redis.Redis.from_url(
            url,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 0),
        )
    except ValueError as error:
        raise StoreUnreachable(f'redis_url {_without_password(url)!r}: {error}') from error


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
        raise StoreUnreachable(
            f'Redis (setting redis_url): {error}; is the server up, and may we talk to it?'
        ) from error


def hash_tag(namespace: str, schema: str) -> str:
    """Return the prefix of all keys of a tenant.

    It is a hash tag: on a Redis Cluster, these keys are on one node.
    """
    return f'{{{namespace}:{schema}}}'


def _without_password(url: str) -> str:
    return url.split('@')[-1] if '@' in url else url
