"""The nodes of a Redis Cluster, and which of them has which keys.

redis-py's manager of nodes finds that out. Its client of clusters is not used: it can't be made
while one certain node is away, and would send a script a second time by itself. This module does
not know what is sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import redis
from redis.cluster import PRIMARY, ClusterNode, NodesManager
from redis.crc import key_slot
from redis.exceptions import RedisClusterException

from ..forks import OwnLock

NodeT = TypeVar('NodeT')

#: Seconds between two looks at the cluster's state, in a process.
PAUSE = 1.0


class UncoveredSlot(redis.RedisError):
    """No node has the keys of a tenant, at present. Others have those of other tenants."""


class Cluster(Generic[NodeT]):
    """The nodes of a cluster; made with a client, used by all threads.

    The cluster is looked at when a node is first asked for, and again after :meth:`look_again`.

    :param startup: host and port of some of its nodes.
    :param options: keyword arguments of redis-py's connections.
    :param make: returns the client of the node with this host and port; connects nothing.
    """

    def __init__(
        self,
        startup: Sequence[tuple[str, int]],
        options: dict[str, Any],
        make: Callable[[str, int], NodeT],
    ) -> None:
        self._startup = startup
        self._options = options
        self._make = make
        self._clients: dict[tuple[str, int], NodeT] = {}
        self._lock = OwnLock()
        self._found: Any = None
        # by slot: the node to which it has moved since the last look
        self._moved: dict[int, NodeT] = {}
        self._is_outdated = False
        self._next_look = 0.0
        self._problem = 'nobody has looked at the cluster yet'

    def node(self, host: str, port: int) -> NodeT:
        """Return the client of a node."""
        # two threads may make one each; the first one that is entered is used
        return self._clients.get((host, port)) or self._clients.setdefault(
            (host, port), self._make(host, port)
        )

    def node_of(self, key: str | bytes) -> NodeT:
        """Return the client of the node that has a key, as far as this process knows.

        :raises redis.RedisError: if there is none, or if no node of the cluster can be reached.
        """
        try:
            slot = key_slot(key.encode() if isinstance(key, str) else key)
            found = self._look().get_node_from_slot(slot)
            if moved := self._moved.get(slot):
                return moved
        except RedisClusterException as error:
            self.look_again()
            raise UncoveredSlot(str(error)) from error
        return self.node(found.host, found.port)

    def primaries(self) -> list[NodeT]:
        """Return the clients of all nodes that have keys.

        :raises redis.RedisError: if no node of the cluster can be reached.
        """
        found = self._look().get_nodes_by_server_type(PRIMARY)
        return [self.node(each.host, each.port) for each in found]

    def moved(self, slot: int, host: str, port: int) -> NodeT:
        """Take notice that a node has the keys of a slot now; return its client."""
        node = self._moved[slot] = self.node(host, port)
        self.look_again()
        return node

    def look_again(self) -> None:
        """Look at the cluster's state again before the next use, at most once per
        :data:`PAUSE`."""
        self._is_outdated = True

    def close(self) -> None:
        """Close what looks at the cluster; the clients of the nodes are not closed."""
        with self._lock.present:
            found, self._found = self._found, None
        if found is not None:
            found.close()

    def clients(self) -> list[NodeT]:
        """Return the clients of the nodes that have been asked for."""
        return list(self._clients.values())

    def _look(self) -> Any:
        """Return redis-py's manager of nodes, after a look at the cluster if one is due."""
        if self._found is None:
            with self._lock.present:  # nobody can go on without it
                if self._found is None:
                    self._find()
        elif (
            self._is_outdated
            and time.monotonic() >= self._next_look
            and self._lock.present.acquire(blocking=False)  # one thread looks; the others go on
        ):
            try:
                self._find_again()
            finally:
                self._lock.present.release()
        return self._found

    def _find(self) -> None:
        if time.monotonic() < self._next_look:  # who has waited does not try again by himself
            raise redis.ConnectionError(self._problem)
        self._next_look = time.monotonic() + PAUSE
        problem: Exception | None = None
        try:
            self._found = self._manager()
        except (RedisClusterException, redis.RedisError, OSError) as error:
            problem = error
        if problem is not None:
            self._problem = f'no node of the cluster can be used: {problem}'
            raise redis.ConnectionError(self._problem)

    def _find_again(self) -> None:
        self._next_look = time.monotonic() + PAUSE
        self._is_outdated = False
        self._moved = {}
        try:
            self._found = self._manager()
        except (RedisClusterException, redis.RedisError, OSError):
            self._is_outdated = True  # what was found before is used meanwhile

    def _manager(self) -> NodesManager:
        # all nodes that the URL names may be gone by now
        nodes = dict.fromkeys((*self._startup, *self._clients))
        return NodesManager([ClusterNode(*each) for each in nodes], **self._options)  # type: ignore[no-untyped-call]
