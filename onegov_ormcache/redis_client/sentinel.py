"""Servers that Sentinels watch: a pool whose connections lead to the present primary.

redis-py asks the Sentinels for the primary whenever it opens a connection, and drops its idle
connections when there is another one. This module does not know what is sent.
"""

from __future__ import annotations

from typing import Any

import redis
from redis.sentinel import Sentinel, SentinelConnectionPool

from .urls import Address


class SentinelClient(redis.Redis):
    """A client of one Sentinel. Its repr, which errors of redis-py have in them, is an address."""

    def __repr__(self) -> str:
        known = self.connection_pool.connection_kwargs
        return f'{known["host"]}:{known["port"]}'


def sentinel_pool(address: Address, options: dict[str, Any]) -> SentinelConnectionPool:
    """Return a pool of connections to the present primary; nothing is connected yet.

    The Sentinels are asked with the same options as the servers, but for user and password.

    :param options: keyword arguments of the connections to servers.
    """
    used = {'username', 'password', 'db', 'client_name', 'max_connections'}
    watching = {name: value for name, value in options.items() if name not in used}
    watching |= {'ssl': address.tls} | address.sentinel_options
    if not watching['ssl']:
        watching = {name: value for name, value in watching.items() if name[:4] != 'ssl_'}
    sentinel: Any = Sentinel([])  # type: ignore[no-untyped-call]
    sentinel.sentinels = [
        SentinelClient(host=host, port=port, **watching) for host, port in address.nodes
    ]
    pool: SentinelConnectionPool = SentinelConnectionPool(  # type: ignore[no-untyped-call]
        address.service, sentinel, ssl=address.tls, **options
    )
    return pool
