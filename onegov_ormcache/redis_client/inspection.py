"""What a Redis that answers can't be used for, found out when it is first reached.

This module does not know what follows from that.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import redis
from redis.exceptions import AuthenticationError, NoPermissionError

from ..errors import StoreUnreachable
from .client import OF_CLUSTER, Client


class Fault(NamedTuple):
    """Something that a server can't be used for."""

    text: str
    #: True if it will not change by itself, so it is the setting that is wrong.
    is_wrong_setting: bool


def faults(client: Client) -> list[Fault]:
    """Return what the server can't be used for; nothing if it does not answer."""
    found = []
    try:
        server = client.servers()[0]
        info: Any = _info(server)
        # Valkey calls it otherwise
        mode = info.get('redis_mode') or info.get('server_mode')
        if mode == 'sentinel':
            found.append(Fault(
                'it is a Sentinel, which has no data: give the URL of the server that it watches, '
                'or redis+sentinel://HOST:PORT/SERVICE', True
            ))  # fmt: skip
        elif mode == 'cluster' and not client.is_cluster:
            found.append(Fault(OF_CLUSTER, True))
        elif may_not_run_scripts(server):
            found.append(Fault('its user may not run scripts (ACL: +eval +evalsha +script)', True))
        if info.get('maxmemory') and info.get('maxmemory_policy') == 'noeviction':
            found.append(Fault(
                'it refuses to store values when its memory is full: '
                'set maxmemory-policy to allkeys-lru', False
            ))  # fmt: skip
    except AuthenticationError as error:
        found.append(Fault(f'it does not let us in: {error}', True))
    except (redis.RedisError, StoreUnreachable):
        pass  # it does not answer: nothing is known, and the next command says so
    return found


def may_not_run_scripts(client: Client) -> bool:
    """Return whether the server refuses to run a script."""
    try:
        client.eval('return 1', 0)
    except NoPermissionError:
        return True
    return False


def _info(client: Client) -> Any:
    """Return what the server tells of itself; nothing if our user may not ask."""
    try:
        return client.info()
    except NoPermissionError:
        return {}
