"""The faults of a soak: what breaks, and how it is mended."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

from .servers import World


def nothing(world: World) -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Fault:
    """A kind of fault."""

    name: str
    #: What is done, in words.
    text: str
    begin: Callable[[World], None]
    end: Callable[[World], None] = nothing
    #: The seconds between both, as a part of the time that a fault has.
    part: float = 0.5
    #: The timeouts of Redis that pass between both at least.
    timeouts: float = 0.0
    #: What breaks: ``store``, ``database`` or ``process``.
    what: str = 'store'
    #: True if another process may be shown what was there before, until a delivery.
    may_be_stale: bool = False


def configure(**settings: str) -> Callable[[World], None]:
    """Return a function that configures Redis."""

    def done(world: World) -> None:
        with closing(world.redis.client()) as client:
            for name, value in settings.items():
                client.config_set(name.replace('_', '-'), value)

    return done


def replica_of(host: str, port: str) -> Callable[[World], None]:
    """Return a function that makes Redis a replica, or a primary again."""

    def done(world: World) -> None:
        with closing(world.redis.client()) as client:
            client.replicaof(host, port)

    return done


def kill_clients(world: World) -> None:
    """Close all connections of Redis, ten times."""
    with closing(world.redis.client()) as client:
        for _ in range(10):
            client.client_kill_filter(skipme=True, _type='normal')
            time.sleep(0.05)


def flush(world: World) -> None:
    """Let Redis forget all, ten times."""
    with closing(world.redis.client()) as client:
        for _ in range(10):
            client.flushall()
            time.sleep(0.05)


def restart_older(world: World) -> None:
    """Kill Redis, and start it on what it has saved when the fault began."""
    world.redis.kill()
    world.redis.start()


def save(world: World) -> None:
    world.redis.save()


def start_empty(world: World) -> None:
    (world.redis.folder / 'dump.rdb').unlink(missing_ok=True)
    world.redis.start()


def damage(world: World) -> None:
    """Overwrite keys of every kind with random bytes."""
    chooser = random.Random(1)
    with closing(world.redis.client()) as client:
        for _ in range(10):
            for key in list(client.scan_iter(count=1000)):
                data = chooser.randbytes(chooser.choice((0, 1, 40, 2000)))
                if client.type(key) == b'hash':
                    fields = client.hkeys(key)
                    if fields:
                        client.hset(key, chooser.choice(fields), data)
                else:
                    client.set(key, data)
            time.sleep(0.05)


def kill_workers(world: World) -> None:
    """Kill a worker of each gunicorn; gunicorn starts another one."""
    for each in world.gunicorns:
        os.kill(each.workers()[0], signal.SIGKILL)


def recycle(world: World) -> None:
    """Kill Redis, and let each gunicorn start new workers meanwhile."""
    world.redis.kill()
    for each in world.gunicorns:
        each.recycle()


FAULTS = (
    Fault('none', 'nothing', nothing),
    Fault('stall', 'Redis is stopped (SIGSTOP), and goes on',
          lambda world: world.redis.pause(), lambda world: world.redis.resume(), timeouts=1.5),
    Fault('restart', 'Redis is killed, and started again with nothing',
          lambda world: world.redis.kill(), start_empty),
    Fault('older', 'Redis saves, is killed later, and started again with what it has saved',
          save, restart_older),
    Fault('cuts', 'all connections of Redis are closed, ten times', kill_clients),
    Fault('flush', 'Redis forgets all (FLUSHALL), ten times', flush),
    Fault('full', 'Redis is full, and may drop nothing (noeviction)',
          configure(maxmemory_policy='noeviction', maxmemory='1'), configure(maxmemory='0')),
    Fault('replica', 'Redis becomes a replica, and a primary again',
          replica_of('127.0.0.1', '1'), replica_of('NO', 'ONE')),
    Fault('cut off', 'some processes can not reach Redis, others can',
          lambda world: world.wire.cut(), lambda world: world.wire.mend(), may_be_stale=True),
    Fault('damage', 'keys of every kind are overwritten with random bytes, ten times', damage),
    Fault('terminate', 'PostgreSQL ends all connections',
          lambda world: world.postgres.terminate_backends(), part=0.1, what='database'),
    Fault('postgres', 'PostgreSQL is killed (SIGKILL), and started again',
          lambda world: world.postgres.kill(), lambda world: world.postgres.start(),
          part=0.2, what='database'),
    Fault('worker', 'a worker of each server is killed (SIGKILL)', kill_workers,
          part=0.1, what='process'),
    Fault('recycle', 'workers are exchanged while Redis is away', recycle, start_empty),
)  # fmt: skip
