"""Sets of real Redis servers: a primary and a replica that Sentinels watch, a Cluster, and TLS.

All are made of the servers in servers.py, on loopback. This module knows nothing of pytest.
"""

from __future__ import annotations

import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import redis
import trustme

from tests.support.outages import end_pauses
from tests.support.servers import RedisServer, free_port

SECONDS = 60

#: The name by which the Sentinels know the servers.
SERVICE = 'town'

#: The first byte of a connection by TLS.
TLS_HANDSHAKE = b'\x16'

SENTINEL_CONFIGURATION = """
port {port}
bind 127.0.0.1
dir {folder}
sentinel monitor {service} 127.0.0.1 {primary} {quorum}
sentinel down-after-milliseconds {service} 300
sentinel failover-timeout {service} 2000
"""


#: Milliseconds between two looks of a Sentinel at servers and other Sentinels, which are seconds
#: by default.
PERIODS = ('info-period', 200, 'ping-period', 100, 'publish-period', 200, 'ask-period', 200)


def wait_until(holds: Callable[[], bool], what: str) -> None:
    """Ask again and again, until it holds; errors of Redis count as a no.

    :raises RuntimeError: after 30 seconds.
    """

    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        with suppress(redis.RedisError):
            if holds():
                return
        time.sleep(0.01)
    raise RuntimeError(f'{what}: not within {SECONDS} s')


class Sentinel(RedisServer):
    """A Sentinel that watches a primary.

    :param port: that of the primary; what replicates it is found by the Sentinel.
    :param quorum: the number of Sentinels that must find it lost.
    :param watched: the password of the servers.
    :param password: the Sentinel's own.
    """

    def __init__(
        self, port: int | None, quorum: int, *, watched: str = '', password: str = ''
    ) -> None:
        super().__init__(password=password)
        #: The primary's port.
        self.watched_port = port
        self._quorum = quorum
        self._watched = watched

    def start(self) -> None:
        super().start()
        with closing(self.client()) as client:
            client.execute_command('SENTINEL', 'DEBUG', *PERIODS)  # type: ignore[no-untyped-call]

    def state(self) -> dict[str, Any]:
        """Return what the Sentinel knows of the primary."""

        with closing(self.client()) as client:
            known: Any = client.sentinel_master(SERVICE)
            return dict(known)

    def _arguments(self) -> list[str]:
        text = SENTINEL_CONFIGURATION.format(
            port=self.port, folder=self.folder, service=SERVICE, primary=self.watched_port,
            quorum=self._quorum,
        )  # fmt: skip
        if self._watched:
            text += f'sentinel auth-pass {SERVICE} "{self._watched}"\n'
        if self._password:
            # also with which it asks the others
            text += f'requirepass "{self._password}"\nsentinel sentinel-pass "{self._password}"\n'
        configuration = self.folder / 'sentinel.conf'
        configuration.write_text(text)
        return [str(configuration), '--sentinel']


class SentinelSet:
    """A primary, a replica, and three Sentinels that make the replica the primary if need be.

    :param password: that of the servers.
    :param sentinel_password: that of the Sentinels.
    """

    def __init__(self, *, password: str = '', sentinel_password: str = '') -> None:
        self._passwords = password, sentinel_password
        delay = '--repl-diskless-sync-delay', '0'
        self.servers = [RedisServer(*delay, password=password) for _ in range(2)]
        self.sentinels = [
            Sentinel(None, 2, watched=password, password=sentinel_password)
            for _ in range(3)
        ]
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for server in self.servers:
                stack.enter_context(server)
            replicate(self.servers[1], self.servers[0])
            for sentinel in self.sentinels:
                sentinel.watched_port = self.servers[0].port
                stack.enter_context(sentinel)
            wait_until(self._is_complete, 'Sentinels that know one another and the replica')
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        """The URL for clients."""

        password, of_sentinels = (quote(each, safe='') for each in self._passwords)
        user = f':{password}@' if password else ''
        nodes = ','.join(f'127.0.0.1:{each.port}' for each in self.sentinels)
        query = f'?sentinel_password={of_sentinels}' if of_sentinels else ''
        return f'redis+sentinel://{user}{nodes}/{SERVICE}/0{query}'

    @property
    def primary(self) -> RedisServer:
        """The server that the Sentinels name."""

        port = self.sentinels[0].state()['port']
        (found,) = (each for each in self.servers if each.port == port)
        return found

    def fail_over(self) -> None:
        """Kill the primary, and wait until the Sentinels have made the replica the primary."""

        lost = self.primary
        lost.kill()
        self._wait_for(lost)

    def switch(self) -> None:
        """Have the Sentinels make the replica the primary, and the primary its replica."""

        before = self.primary
        (other,) = (each for each in self.servers if each is not before)

        def is_done() -> bool:
            first = self.sentinels[0]
            if self._is_primary(other):
                return True
            if first.state()['port'] == before.port:
                with closing(first.client()) as client:
                    # refused while it is on the way; given up if the replica is not ready yet, or
                    # if the other Sentinels have taken the primary for lost meanwhile
                    client.sentinel_failover(SERVICE)
            return False

        wait_until(is_done, 'a fail-over')
        end_pauses()
        wait_until(lambda: is_replicated(before), 'a replica of the new primary')

    def _wait_for(self, before: RedisServer) -> None:
        (other,) = (each for each in self.servers if each is not before)
        wait_until(lambda: self._is_primary(other), 'another primary')
        end_pauses()

    def _is_primary(self, server: RedisServer) -> bool:
        with closing(server.client()) as client:
            is_primary = client.info('replication')['role'] == 'master'
        return is_primary and all(
            each.state()['port'] == server.port and not each.state()['is_disconnected']
            for each in self.sentinels
        )

    def _is_complete(self) -> bool:
        states = [each.state() for each in self.sentinels]
        return all(
            state['num-other-sentinels'] == 2 and state['num-slaves'] == 1 for state in states
        )


class ClusterSet:
    """A Redis Cluster of three nodes that have a third of the slots each.

    :param replicas: the number of nodes that replicate the first of the three.
    :param password: that of all nodes.
    """

    def __init__(self, *, replicas: int = 0, password: str = '') -> None:
        self._password = password
        self.nodes = [ClusterNode(password=password) for _ in range(3)]
        self.replicas = [ClusterNode(password=password) for _ in range(replicas)]
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for node in self.nodes + self.replicas:
                stack.enter_context(node)
            self._join()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        """The URL for clients, with two of the nodes."""

        user = f':{quote(self._password, safe="")}@' if self._password else ''
        nodes = ','.join(f'127.0.0.1:{each.port}' for each in self.nodes[:2])
        return f'redis+cluster://{user}{nodes}'

    def node_of(self, key: str) -> ClusterNode:
        """Return the node, of the three first ones, that has a key."""

        slot: int = self.nodes[0].ask('CLUSTER', 'KEYSLOT', key)
        return self.nodes[min(slot // 5461, 2)]

    def fail_over(self) -> None:
        """Kill the first node, and wait until its replica has its slots."""

        self.nodes[0].kill()
        others = [*self.nodes[1:], *self.replicas]
        mine = self.replicas[0].port
        wait_until(
            lambda: all(each.ask('CLUSTER', 'SLOTS')[0][2][1] == mine for each in others),
            'another node with the slots',
        )
        end_pauses()

    def _join(self) -> None:
        first, *others = self.nodes
        for epoch, node in enumerate(self.nodes):
            node.ask('CLUSTER', 'SET-CONFIG-EPOCH', epoch + 1)
            begin, end = epoch * 5461, 16383 if epoch == 2 else epoch * 5461 + 5460
            node.ask('CLUSTER', 'ADDSLOTSRANGE', begin, end)
        for node in others + self.replicas:
            node.ask('CLUSTER', 'MEET', '127.0.0.1', first.port, first.bus_port)
        count = len(self.nodes + self.replicas)
        everyone = self.nodes + self.replicas
        wait_until(lambda: all(node.knows(count) for node in everyone), 'a cluster')
        name = first.ask('CLUSTER', 'MYID').decode()
        for node in self.replicas:
            node.ask('CLUSTER', 'REPLICATE', name)
        wait_until(lambda: all(map(is_replicated, self.replicas)), 'replicas of the first node')


class ClusterNode(RedisServer):
    """A node of a Redis Cluster."""

    def __init__(self, *, password: str) -> None:
        self.bus_port = free_port()
        super().__init__(
            *('--cluster-enabled', 'yes', '--cluster-port', str(self.bus_port)),
            *('--cluster-node-timeout', '1000', '--cluster-require-full-coverage', 'no'),
            *('--repl-diskless-sync-delay', '0'),
            password=password,
        )

    def ask(self, *command: Any) -> Any:
        """Return the answer to a command."""

        with closing(self.client()) as client:
            # else redis-py parses the answers of CLUSTER commands
            client.response_callbacks.clear()
            return client.execute_command(*command)  # type: ignore[no-untyped-call]

    def knows(self, count: int) -> bool:
        """Tells if the cluster works for this node, with this number of nodes."""

        state = self.ask('CLUSTER', 'INFO').decode()
        return 'cluster_state:ok' in state and f'cluster_known_nodes:{count}' in state


def replicate(replica: RedisServer, primary: RedisServer) -> None:
    """Make a server the replica of another one, and wait until it has all that the other has."""

    with closing(replica.client()) as client, closing(primary.client()) as other:
        other.config_set('repl-diskless-sync-delay', 0)
        client.replicaof('127.0.0.1', str(primary.port))
    wait_until(lambda: is_replicated(replica), 'a replica')


def is_replicated(replica: RedisServer) -> bool:
    """Tells if a replica is connected to its primary."""

    with closing(replica.client()) as client:
        return client.info('replication').get('master_link_status') == 'up'


class TlsFront:
    """Takes connections by TLS, and passes them on to a server without; others it takes too.

    The server of the wheel has no TLS of its own, nor has its Sentinel, which must reach a server
    at the address that it names to clients. Entering the context starts a thread, leaving it ends
    the thread and all its connections.

    :param port: that of the server.
    :param folder: where the certificate of the authority is written.
    :param other: another front, which has the same authority.
    """

    def __init__(self, port: int, folder: Path, other: TlsFront | None = None) -> None:
        self.authority: trustme.CA = trustme.CA() if other is None else other.authority
        #: The file with the certificate of the authority.
        self.certificate = folder / 'authority.pem'
        self.authority.cert_pem.write_to_path(str(self.certificate))
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert('127.0.0.1').configure_cert(self._context)
        self._target = port
        self._listener = socket.create_server(('127.0.0.1', 0))
        self._is_closing = False
        self.port: int = self._listener.getsockname()[1]
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *error: object) -> None:
        self._is_closing = True
        for thread in list(self._threads):
            thread.join(10)
        self._listener.close()

    def _start(self, run: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=run, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        self._listener.settimeout(0.05)
        while not self._is_closing:
            with suppress(TimeoutError):
                accepted, _ = self._listener.accept()
                self._start(self._serve, accepted)

    def _serve(self, accepted: socket.socket) -> None:
        with accepted, suppress(OSError):  # also of a client that does not trust the certificate
            accepted.settimeout(10)
            is_tls = accepted.recv(1, socket.MSG_PEEK) == TLS_HANDSHAKE
            with (
                self._context.wrap_socket(accepted, server_side=True)
                if is_tls else accepted as outside,
                socket.create_connection(('127.0.0.1', self._target), 10) as inside,
            ):
                self._pass_on(outside, inside)

    def _pass_on(self, outside: socket.socket, inside: socket.socket) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(outside, selectors.EVENT_READ, inside)
            selector.register(inside, selectors.EVENT_READ, outside)
            while not self._is_closing:
                for key, _ in selector.select(0.05):
                    source: Any = key.fileobj
                    data = source.recv(65536)
                    while isinstance(source, ssl.SSLSocket) and source.pending():
                        data += source.recv(65536)
                    if not data:
                        return
                    key.data.sendall(data)
