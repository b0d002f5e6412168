"""The connection to Redis, and what all keys there begin with.

Tag store and shared tier talk to one server through one client. Neither knows the other,
so what they have in common is here.
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
    """A client that waits no longer than ``timeout`` seconds, and tries nothing twice.

    A retry needs a new token: a script that runs a second time later, with the old one,
    would bring an old version back.

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
    """The answer of Redis, asked a second time if the connection was lost.

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
    """What all keys of a tenant begin with: on a Redis Cluster they lie on one node."""
    return f'{{{namespace}:{schema}}}'


def _without_password(url: str) -> str:
    return url.split('@')[-1] if '@' in url else url
