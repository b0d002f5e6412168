"""A URL names the servers and their options; what is wrong in it is told at the start."""

from __future__ import annotations

from typing import Any

import pytest

from onegov_ormcache.errors import ConfigurationError
from onegov_ormcache.redis_client.client import connect
from onegov_ormcache.redis_client.urls import OPTIONS, Kind, parse


@pytest.mark.parametrize(
    ('url', 'shown', 'options'),
    [
        ('redis://', 'redis://localhost:6379/0', {}),
        ('redis://h:1/3', 'redis://h:1/3', {'db': 3}),
        ('redis://h?db=3', 'redis://h:6379/3', {'db': 3}),
        ('redis://[::1]:1', 'redis://[::1]:1/0', {}),
        ('rediss://u:p@h', 'rediss://h:6379/0', {'username': 'u', 'password': 'p'}),
        ('redis://:a%40%23%2F%3Fb@h/0', 'redis://h:6379/0', {'password': 'a@#/?b', 'db': 0}),
        ('redis://:a@b@h', 'redis://h:6379/0', {'password': 'a@b'}),
        ('redis://h?password=a%26b', 'redis://h:6379/0', {'password': 'a&b'}),
        ('unix://u:p@/a%20b?db=2', 'unix:///a b', {'username': 'u', 'password': 'p', 'db': 2}),
        ('redis+sentinel://a,b:1/x', 'redis+sentinel://a:26379,b:1/x/0', {}),
        ('rediss+sentinel://a/x/2', 'rediss+sentinel://a:26379/x/2', {'db': 2}),
        ('redis+cluster://a:1,[::1]', 'redis+cluster://a:1,[::1]:6379', {}),
        ('rediss+cluster://a/0?ssl_cert_reqs=none', 'rediss+cluster://a:6379',
         {'ssl_cert_reqs': 'none'}),
        ('redis://h?health_check_interval=3&socket_keepalive=no', 'redis://h:6379/0',
         {'health_check_interval': 3, 'socket_keepalive': False}),
    ],
)  # fmt: skip
def test_urls(url: str, shown: str, options: dict[str, Any]) -> None:
    """The options are those of redis-py, and the text has neither user nor password."""
    address = parse(url)
    assert str(address) == shown
    assert address.options == options
    assert connect(url, 1).breaker is not None


def test_options_for_sentinels() -> None:
    """User, password and TLS of Sentinels may differ from those of the servers."""
    options = 'sentinel_username=u&sentinel_password=p&sentinel_ssl=no'
    address = parse(f'rediss+sentinel://:q@h/x?{options}')
    assert address.kind is Kind.SENTINEL
    assert address.options == {'password': 'q'}
    assert address.sentinel_options == {'username': 'u', 'password': 'p', 'ssl': False}


@pytest.mark.parametrize(
    ('url', 'problem'),
    [
        ('http://h', 'begins with none of redis://'),
        ('redis://h:x', 'port, is wrong'),
        ('redis://h:0', 'port, is wrong'),
        ('redis://h:65536', 'port, is wrong'),
        ('redis://h:1:2', 'port, is wrong'),
        ('redis://a,b', 'port, is wrong'),
        ('redis://h/a', 'no number of a database'),
        ('redis://h#a', '"#"'),
        ('redis://[::1', 'can not be parsed'),
        ('redis://h?nonsense=1', 'unknown option nonsense; known are client_name, db'),
        ('redis://h?decode_responses=1', 'unknown option decode_responses'),
        ('redis://h?ssl_ca_certs=f', 'unknown option ssl_ca_certs'),
        ('redis://h?sentinel_password=f', 'unknown option sentinel_password'),
        ('redis://h?db=x', 'option db has a wrong value'),
        ('redis://h?max_connections=', 'option max_connections has a wrong value'),
        ('redis://h?protocol=9', 'option has a wrong value: protocol'),
        ('rediss://h?ssl_cert_reqs=maybe', 'option has a wrong value: ssl_cert_reqs'),
        ('unix://host/path', 'needs a path'),
        ('unix://', 'needs a path'),
        ('redis+sentinel://h', 'must name the service'),
        ('redis+sentinel:///x', 'a host is missing'),
        ('redis+cluster://a,,b', 'a host is missing'),
        ('redis+cluster://a/1', 'only the database 0'),
    ],
)
def test_wrong_urls(url: str, problem: str) -> None:
    """Each mistake is an error of the package, before anything is sent; it says what is wrong."""
    with pytest.raises(ConfigurationError, match='redis_url') as raised:
        connect(url, 1)
    assert problem in str(raised.value)


@pytest.mark.parametrize('option', sorted(OPTIONS))
def test_each_option_is_one_of_redis_py(option: str) -> None:
    """redis-py's connections know each option that the package lets through."""
    value = {'protocol': '2'}.get(option, '1')
    assert connect(f'redis://h?{option}={value}', 1).connection_pool.make_connection()
