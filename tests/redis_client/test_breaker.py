"""A Redis that does not answer is asked now and then, and by one caller at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise

import pytest
import redis
from redis.exceptions import MaxConnectionsError, NoPermissionError, ReadOnlyError

from onegov_ormcache.errors import StoreUnreachable
from onegov_ormcache.redis_client.breaker import JITTER, PAUSES, Breaker, Insistence, insisting
from onegov_ormcache.redis_client.client import Client, is_lost
from tests.support.servers import RedisServer

LONGEST = PAUSES[1] * (1 + JITTER)


class Clock:
    """Seconds that pass when a test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(0.5, clock)


@contextmanager
def counted_commands(client: Client) -> Iterator[list[object]]:
    """Count the commands that a client hands to its connections."""
    sent: list[object] = []
    pool = client.connection_pool
    get: Callable[..., object] = pool.get_connection

    def counting(*arguments: object, **options: object) -> object:
        sent.append(arguments)
        return get(*arguments, **options)

    pool.get_connection = counting
    try:
        yield sent
    finally:
        pool.get_connection = get


def may_enter(breaker: Breaker) -> bool:
    try:
        breaker.enter()
    except redis.ConnectionError:
        return False
    return True


def test_one_trial_per_pause(breaker: Breaker, clock: Clock) -> None:
    """After a failure nobody may ask, then one caller per pause; the pauses grow to a limit."""
    assert may_enter(breaker)
    breaker.failed(redis.ConnectionError('gone'))
    trials = []
    for _ in range(2000):
        clock.now += 0.01
        with ThreadPoolExecutor(4) as pool:
            entered = list(pool.map(may_enter, [breaker] * 4))
        assert sum(entered) <= 1
        if any(entered):
            trials.append(clock.now)
            breaker.failed(redis.ConnectionError('still gone'))
    pauses = [after - before for before, after in pairwise(trials)]
    assert min(pauses) >= PAUSES[0] * (1 - JITTER)
    assert max(pauses) <= LONGEST + 0.02
    assert len({round(pause, 2) for pause in pauses}) > 1
    assert breaker.losses == 1


def test_a_trial_that_nobody_ends(breaker: Breaker, clock: Clock) -> None:
    """A caller that was interrupted in its trial keeps nobody from the next one."""
    breaker.failed(redis.ConnectionError('gone'))
    clock.now += LONGEST
    assert may_enter(breaker)
    assert not may_enter(breaker)
    clock.now += LONGEST
    assert may_enter(breaker)


def test_a_late_answer(breaker: Breaker, clock: Clock) -> None:
    """The answer to a command from before the loss does not close the breaker; a trial's does."""
    is_trial = breaker.enter()
    breaker.failed(redis.ConnectionError('another command was not answered'))
    clock.now += LONGEST
    breaker.succeeded(is_trial)
    assert breaker.is_open
    breaker.succeeded(breaker.enter())
    assert not breaker.is_open


def test_who_insists(breaker: Breaker) -> None:
    """A command that insists is sent at once: always, or if the last one was only refused."""
    breaker.failed(redis.ConnectionError('refused'))
    with insisting(Insistence.UNLESS_STALLED):
        assert may_enter(breaker)
        breaker.failed(redis.TimeoutError('not answered'))
        assert not may_enter(breaker)
    with insisting(Insistence.ALWAYS):
        assert may_enter(breaker)
    assert not may_enter(breaker)


def test_the_pauses_begin_anew(breaker: Breaker, clock: Clock) -> None:
    """The first pause of a second loss is as short as that of the first."""
    for losses in (1, 2):
        breaker.failed(redis.ConnectionError('gone'))
        assert breaker.losses == losses
        clock.now += PAUSES[0] * (1 + JITTER)
        breaker.succeeded(breaker.enter())
        assert not breaker.is_open


def test_two_lines_in_the_log(
    breaker: Breaker, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """One line when Redis is lost, one when it is back: how long, and who went around it."""
    caplog.set_level(logging.INFO)
    breaker.failed(redis.ConnectionError('Connection refused'))
    for _ in range(30):
        breaker.missed()
        breaker.failed(redis.ConnectionError('Connection refused'))
    clock.now += 12.34
    breaker.succeeded(breaker.enter())
    breaker.succeeded(breaker.enter())
    assert [record.getMessage() for record in caplog.records] == [
        'Redis is lost: Connection refused',
        'Redis is back after 12.3 s; 30 transactions went around it',
    ]


def test_a_stalled_server_is_waited_for_once(hasty: Client, own_redis: RedisServer) -> None:
    """Of many commands to a server that stalls, one is sent; when it is back, all are."""
    assert hasty.ask(hasty.ping)
    own_redis.pause()
    try:
        with counted_commands(hasty) as sent:
            for _ in range(50):
                with pytest.raises(StoreUnreachable):
                    hasty.ask(hasty.ping)
                with pytest.raises(redis.ConnectionError):
                    hasty.send('PING')
            assert len(sent) == 1
    finally:
        own_redis.resume()
    assert hasty.ask(hasty.ping)
    assert hasty.ask(hasty.ping)
    assert hasty.breaker.losses == 1


def test_a_dead_server_is_lost(hasty: Client, own_redis: RedisServer) -> None:
    """A connection that was refused opens the breaker at once."""
    own_redis.kill()
    with pytest.raises(StoreUnreachable, match='redis_url'):
        hasty.ask(hasty.ping)
    assert hasty.breaker.is_open


def test_a_lost_connection_is_no_loss(hasty: Client, own_redis: RedisServer) -> None:
    """A connection that the server has closed is made again."""
    hasty.ask(hasty.ping)
    with own_redis.client() as plain:
        plain.client_kill_filter(skipme=True, _type='normal')
    assert hasty.ask(hasty.ping)
    assert hasty.breaker.losses == 0


def test_an_error_of_one_command_is_no_loss(hasty: Client) -> None:
    """A command that the server refuses says nothing about the others."""
    hasty.set('text', 'a')
    with pytest.raises(StoreUnreachable):
        hasty.ask(lambda: hasty.incr('text'))
    assert not hasty.breaker.is_open


def test_a_replica_is_lost(hasty: Client, own_redis: RedisServer) -> None:
    """A server that refuses all changes can't be used."""
    own_redis.client().replicaof('127.0.0.1', '1')
    with pytest.raises(StoreUnreachable, match='read only'):
        hasty.ask(lambda: hasty.set('key', 'value'))
    assert hasty.breaker.is_open


@pytest.mark.parametrize(
    ('error', 'expected'),
    [
        (ReadOnlyError('replica'), True),
        (NoPermissionError('no rights'), True),
        (redis.ResponseError('MISCONF no disk'), True),
        (redis.ResponseError('WRONGTYPE'), False),
        (redis.exceptions.OutOfMemoryError('full'), False),
        (MaxConnectionsError('too many'), False),
    ],
)
def test_what_is_a_loss(error: redis.RedisError, expected: bool) -> None:
    """An error that all commands would get is a loss, and no other."""
    assert is_lost(error) is expected


def test_a_refusal_that_was_waited_for(breaker: Breaker) -> None:
    """An error that took as long as a timeout is one, whatever it says: no commit waits for the
    next."""
    breaker.failed(redis.ConnectionError('no Sentinel answers'), seconds=1.5)
    with insisting(Insistence.UNLESS_STALLED):
        assert not may_enter(breaker)
