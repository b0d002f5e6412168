"""The client of Redis: who asks it, how long, and what its errors become.

Redis is one server, servers that Sentinels watch (:mod:`.sentinel`), or a cluster
(:mod:`.cluster`), of which each node has a client and a breaker of its own.

This module does not know what is stored.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.connection import (
    Connection,
    ConnectionPool,
    SSLConnection,
    UnixDomainSocketConnection,
)
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
from .cluster import Cluster
from .replies import ABANDONED, Reply, reading_later
from .sent import SENT
from .sentinel import sentinel_pool
from .urls import Address, Kind, parse

log = logging.getLogger(__name__)

T = TypeVar('T')

#: Errors of a server that can't be used at present, whatever it is asked.
LOST = (
    redis.ConnectionError, redis.TimeoutError, ReadOnlyError, NoPermissionError, MovedError,
    AskError, ClusterDownError, MasterDownError,
)  # fmt: skip

#: The number of nodes that may pass a command on, one to the other, while keys move.
REDIRECTIONS = 5

#: Commands that must reach each node of a cluster.
LOADING = frozenset({'SCRIPT LOAD', 'FUNCTION LOAD'})

#: Commands whose first key comes after their name, what is run, and the number of keys.
RUNNING = frozenset({'EVAL', 'EVALSHA', 'FCALL'})

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

    :param address: where it leads, for messages; without password.
    :param timeout: seconds that a command waits for its answer.
    """

    #: True if it finds the node of each key.
    is_cluster = False

    def __init__(self, pool: Any, address: object, timeout: float) -> None:
        super().__init__(connection_pool=pool)
        self.breaker = Breaker(timeout)
        self._address = address

    def __repr__(self) -> str:
        return f'<{type(self).__name__} of {self._address}>'

    @property
    def changes(self) -> int:
        """The number of times that Redis, or a node of it, was lost, or was back."""
        return self.breaker.changes

    def at(self, key: str) -> Client:
        """Return the client of the server that has a key; here this one.

        :raises StoreUnreachable: for any failure.
        """
        return self

    def servers(self) -> Sequence[Client]:
        """Return a client for each server that has keys; here this one.

        :raises StoreUnreachable: for any failure.
        """
        return (self,)

    def execute_command(self, *command: Any, **options: Any) -> Any:
        is_trial = self.breaker.enter()
        SENT.tell(command)
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
        begun = time.monotonic()
        first: redis.RedisError | None = None
        try:
            try:
                return question()
            except NotAsked:
                raise
            except redis.ConnectionError as error:
                if self.breaker.is_slow(time.monotonic() - begun):
                    raise
                first = error
                return question()
        except redis.RedisError as error:
            # a trial is one command: the second is not sent
            failure = first if first is not None and isinstance(error, NotAsked) else error
            raise self.unreachable(failure, time.monotonic() - begun) from failure

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
        SENT.tell(command)
        try:
            connection.send_command(*command)
        except BaseException:
            pool.release(connection)
            raise
        return Reply(pool, connection, is_trial)

    def unreachable(self, error: redis.RedisError, seconds: float = 0.0) -> StoreUnreachable:
        """Return the package's own error for one of redis-py's, and open the breaker if it says
        that the server can't be used.

        :param seconds: how long it took to fail.
        """
        if is_lost(error):
            self.breaker.failed(error, reason(error), seconds)
        kind = StoreFull if isinstance(error, OutOfMemoryError) else StoreUnreachable
        return kind(
            f'Redis (setting redis_url): {reason(error)}; is the server up, and may we talk to it?'
        )


class NodeClient(Client):
    """A client of one node of a cluster; made when a key of the node is first needed."""

    is_cluster = True

    def __init__(
        self, pool: Any, host: str, port: int, timeout: float, cluster: Cluster[NodeClient]
    ) -> None:
        super().__init__(pool, f'{host}:{port}', timeout)
        self._host = host
        self._cluster = cluster

    def execute_command(self, *command: Any, **options: Any) -> Any:
        if command[0] in LOADING:
            return _execute_everywhere(self._cluster, command, options)
        node = self
        for _ in range(REDIRECTIONS):
            try:
                return Client.execute_command(node, *command, **options)
            except MovedError as error:  # nothing was executed
                # nodes that do not know their own host name none
                host = error.host or node._host
                node = self._cluster.moved(error.slot_id, host, error.port)
            except AskError as error:
                node = self._cluster.node(error.host or node._host, error.port)
                return node.execute_asking(*command, **options)
        raise redis.ConnectionError('the nodes of the cluster do not agree on who has a key')

    def execute_asking(self, *command: Any, **options: Any) -> Any:
        """Execute a command for keys that are just moving to this node."""
        self.breaker.enter()
        connection: Any = self.connection_pool.get_connection()
        SENT.tell(('ASKING',))
        SENT.tell(command)
        try:
            connection.send_command('ASKING')
            connection.read_response()
            connection.send_command(*command)
            return self.parse_response(connection, command[0], **options)  # type: ignore[no-untyped-call]
        finally:
            self.connection_pool.release(connection)

    def unreachable(self, error: redis.RedisError, seconds: float = 0.0) -> StoreUnreachable:
        self._cluster.look_again()  # another node may have the keys by now
        return super().unreachable(error, seconds)


class ClusterClient(Client):
    """A client of a cluster, which sends each command to the node that has its first key.

    All keys of a command must be on one node, as those of one tenant are. Its own breaker is open
    while no node can be reached; if one node can't, that node's breaker is open, and the tenants
    of other nodes go on.

    :param options: keyword arguments of redis-py's connections.
    """

    is_cluster = True

    def __init__(self, address: Address, timeout: float, options: dict[str, Any]) -> None:
        connection_class = reading_later(SSLConnection if address.tls else Connection)

        def make(host: str, port: int) -> NodeClient:
            pool = ConnectionPool(connection_class, host=host, port=port, **options)
            return NodeClient(pool, host, port, timeout, self._cluster)

        self._cluster: Cluster[NodeClient] = Cluster(
            address.nodes,
            # redis-py adds a retry of its own, which does not retry either
            {name: value for name, value in options.items() if name != 'retry'}
            | {'ssl': address.tls},
            make,
        )
        # what redis-py builds a client on; no command is sent there before the cluster is known
        pool = self._cluster.node(*address.nodes[0]).connection_pool
        super().__init__(pool, address, timeout)

    @property
    def changes(self) -> int:
        nodes = self._cluster.clients()
        return self.breaker.changes + sum(node.breaker.changes for node in nodes)

    def at(self, key: str) -> Client:
        return self._found(lambda: self._cluster.node_of(key))

    def servers(self) -> Sequence[Client]:
        return self._found(self._cluster.primaries)

    def execute_command(self, *command: Any, **options: Any) -> Any:
        name, *arguments = command
        if name in LOADING or not arguments:
            return _execute_everywhere(self._cluster, command, options)
        node = self._cluster.node_of(arguments[2 if name in RUNNING else 0])
        return node.execute_command(*command, **options)

    def send(self, *command: str | bytes | int) -> Reply:
        raise NotImplementedError('send to a node: client.at(key).send(...)')

    def close(self) -> None:
        self._cluster.close()
        for node in self._cluster.clients():
            node.close()
        super().close()

    def _found(self, find: Callable[[], T]) -> T:
        def found() -> T:
            is_trial = self.breaker.enter()
            answer = find()
            self.breaker.succeeded(is_trial)
            return answer

        return self.ask(found)


def _execute_everywhere(
    cluster: Cluster[NodeClient], command: tuple[Any, ...], options: dict[str, Any]
) -> Any:
    """Execute a command on each node, and return the last answer; an error only if there is no
    answer.

    So what a node lacks is loaded, also if another node has passed the command on to it.
    """
    answers, errors = [], []
    # keys may move to a node that has had none before, which is then known by its client only
    for node in dict.fromkeys((*cluster.primaries(), *cluster.clients())):
        try:
            answers.append(Client.execute_command(node, *command, **options))
        except redis.RedisError as error:
            errors.append(error)
    if not answers:
        raise errors[-1]
    return answers[-1]


def connect(url: str, timeout: float) -> Client:
    """Return a client that never sends a command a second time by itself; nothing is sent yet.

    A retry needs a new token. If a script ran twice with the same token, and another writer
    gave the tag a newer version in between, the second run would bring the old version back.

    :param url: the setting ``redis_url``.
    :param timeout: seconds to wait for the connection, and for each answer.
    :raises ConfigurationError: if the URL is wrong, or has an option that is not known.
    """
    address = parse(url)
    options = {
        'socket_timeout': timeout,
        'socket_connect_timeout': timeout,
        **address.options,
        'retry': Retry(NoBackoff(), 0),
    }
    try:
        return _client(address, timeout, options)
    except (redis.RedisError, TypeError, ValueError):  # their texts may have a password
        pass
    raise ConfigurationError(
        f'redis_url {address}: an option has a wrong value: {", ".join(sorted(address.options))}'
    )


def _client(address: Address, timeout: float, options: dict[str, Any]) -> Client:
    client: Client
    if address.kind is Kind.CLUSTER:
        client = ClusterClient(address, timeout, options)
    else:
        client = Client(_pool(address, options), address, timeout)
    pool: Any = client.connection_pool
    # redis-py looks at the options when it opens the first connection; that would be too late
    pool.connection_class(**pool.connection_kwargs)
    return client


def reason(error: redis.RedisError) -> str:
    """Return what an error means, for people."""
    meaning = MEANINGS.get(type(error))
    return str(error) if meaning is None else f'{meaning} ({error})'


def _pool(address: Address, options: dict[str, Any]) -> Any:
    pool: Any
    if address.kind is Kind.SENTINEL:
        pool = sentinel_pool(address, options)
    elif address.path:
        pool = ConnectionPool(UnixDomainSocketConnection, path=address.path, **options)
    else:
        kind = SSLConnection if address.tls else Connection
        (host, port), *_ = address.nodes
        pool = ConnectionPool(kind, host=host, port=port, **options)
    pool.connection_class = reading_later(pool.connection_class)
    return pool


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

