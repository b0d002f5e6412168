"""Replies that nobody waits for are read before all others, and their errors are not lost."""

from __future__ import annotations

from contextlib import closing

import pytest
import redis

from onegov_ormcache.redis_client.client import Client
from tests.support.outside import until
from tests.support.servers import RedisServer


def test_a_reply_that_is_waited_for(client: Client) -> None:
    """It comes when it is asked for; meanwhile others use other connections."""
    reply = client.send('ECHO', 'one')
    assert client.echo('two') == b'two'
    assert reply.result() == b'one'


def test_a_reply_is_read_once(client: Client) -> None:
    """A second attempt is an error, and reads nothing that belongs to others."""
    reply = client.send('ECHO', 'one')
    assert reply.result() == b'one'
    with pytest.raises(redis.ConnectionError):
        reply.result()
    assert client.echo('two') == b'two'


def test_replies_in_their_order(client: Client) -> None:
    """Each later command on the connection gets its own reply, however many were left."""
    for number in range(1000):
        client.send('SET', 'key', number).leave('lost')
        if number % 7 == 0:
            assert client.get('key') == str(number).encode()
    assert client.get('key') == b'999'
    assert client.connection_pool._created_connections == 1


def test_commands_are_executed_in_their_order(client: Client) -> None:
    """What is sent after a command that nobody has waited for sees its effect."""
    for number in range(100):
        client.send('SET', 'key', number).leave('lost')
        assert client.send('GET', 'key').result() == str(number).encode()


def test_an_error_that_nobody_waits_for(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged with what it means, and does not disturb the next command."""
    client.set('text', 'a')
    client.send('INCR', 'text').leave('the count is lost')
    client.send('SET', 'text', 'b').leave('the text is lost')
    assert client.get('text') == b'b'
    assert 'the count is lost' in caplog.text
    assert 'the text is lost' not in caplog.text


def test_a_lost_connection(client: Client, own_redis: RedisServer) -> None:
    """A connection that the server closes after the reply is made again, without an error."""
    client.send('SET', 'key', 'value').leave('lost')
    with closing(own_redis.client()) as plain:
        plain.client_kill_filter(skipme=True, _type='normal')
        assert plain.get('key') == b'value'
    assert client.get('key') == b'value'


def test_a_server_that_stalls(
    hasty: Client, own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody waits for it but who needs an answer; what was left is logged then."""
    hasty.ping()
    own_redis.pause()
    for _ in range(3):
        hasty.send('INCR', 'key').leave('the count may be lost')
    with pytest.raises(redis.TimeoutError):
        hasty.get('key')
    assert caplog.text.count('the count may be lost') == 3
    own_redis.resume()
    assert hasty.echo('again') == b'again'


def test_a_reply_that_nobody_keeps(client: Client, own_redis: RedisServer) -> None:
    """After an interrupt, nobody reads the reply, and the connection is closed."""
    for _ in range(10):
        client.send('ECHO', 'interrupted')
    assert client.echo('mine') == b'mine'
    with closing(own_redis.client()) as plain:
        until(lambda: len(plain.client_list()) == 2, 30)


def test_a_server_that_is_gone(client: Client, own_redis: RedisServer) -> None:
    """What can't be sent is an error at once."""
    client.ping()
    own_redis.kill()
    with pytest.raises(redis.ConnectionError):
        client.send('PING').result()
    with pytest.raises(redis.ConnectionError):
        client.send('PING')
