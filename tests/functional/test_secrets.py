"""No password is printed: not by errors and their causes, nor in logs, reprs and command line."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import make_url

from onegov_ormcache import OrmCacheApp, OrmCacheMiddleware
from onegov_ormcache.__main__ import main
from onegov_ormcache.core.cache import OrmCache
from onegov_ormcache.core.settings import OrmCacheSettings
from onegov_ormcache.database.session_manager import SessionManager
from onegov_ormcache.errors import (
    ConfigurationError,
    DatabaseUnreachable,
    OrmCacheError,
    StoreUnreachable,
)
from onegov_ormcache.redis_client.client import connect
from onegov_ormcache.web.settings import AppSettings
from tests.functional.plain import configured
from tests.support.models import Base
from tests.support.servers import RedisServer

#: A part of each password; the password may have special characters before and behind it.
SECRET = 'hush'

#: Passwords, as they stand in a URL: quoted as they should be, and not.
PASSWORDS = [
    'hush', '%68ush%40%23%2F', 'hush@hush', 'hush#hush', 'hush/hush', 'hush?hush', 'hush?hush=1',
    'hush:hush', 'hush%', 'hush[', 'hush]', 'hush hush', 'hush&hush=1', 'hush,hush', 'hüsh#hush',
    '#hush', '/hush', '?hush', '@hush', ':hush', '1#hush', '1/hush', '1?hush', '1/2@hush',
]  # fmt: skip

REDIS_URLS = [
    *(f'redis://:{each}@127.0.0.1:1/0' for each in PASSWORDS),
    *(f'rediss://u:{each}@127.0.0.1:1/0' for each in PASSWORDS),
    *(f'redis://127.0.0.1:1/0?password={each}' for each in PASSWORDS),
    *(f'redis+sentinel://:{each}@127.0.0.1:1,127.0.0.1:2/town/0' for each in PASSWORDS),
    *(f'redis+sentinel://127.0.0.1:1/town?sentinel_password={each}' for each in PASSWORDS),
    *(f'redis+cluster://:{each}@127.0.0.1:1,127.0.0.1:2' for each in PASSWORDS),
    *(f'unix://:{each}@/nonexistent' for each in PASSWORDS),
    'redis://:hush@127.0.0.1:port/0',
    'redis://:hush@127.0.0.1:99999/0',
    'redis://127.0.0.1:hush',
    'redis://:hush@',
    'redis://:hush@[::1',
    'redis://:hush@127.0.0.1/x',
    'redis://:hush@127.0.0.1?nonsense=hush',
    'redis://:hush@127.0.0.1?socket_timeout=hush',
    'redis://:hush@127.0.0.1?protocol=hush',
    'rediss://:hush@127.0.0.1:1?ssl_cert_reqs=hush',
    'rediss://127.0.0.1:1?ssl_password=hush&ssl_keyfile=/nonexistent',
    'http://:hush@127.0.0.1',
    'redis:/:hush@127.0.0.1',
    ':hush@127.0.0.1',
    'hush',
]

DSNS = [
    *(f'postgresql+psycopg://u:{each}@127.0.0.1:1/town' for each in PASSWORDS),
    *(f'postgresql+psycopg://u@127.0.0.1:1/town?password={each}' for each in PASSWORDS),
    *(f'postgresql+psycopg://127.0.0.1:1/town?user=u&sslpassword={each}' for each in PASSWORDS),
    'postgresql+psycopg://u:hush@127.0.0.1:port/town',
    'postgresql+psycopg://127.0.0.1:hush/town',
    'postgresql+psycopg://u:hush@127.0.0.1:1/town?nonsense=hush',
    'postgresql+psycopg://u:hush@127.0.0.1:1/town?connect_timeout=hush',
    'postgresql+nodriver://u:hush@127.0.0.1/town',
    'postgresql+psycopg2://u:hush@127.0.0.1:1/town?password=hush',
    'nodialect://u:hush@127.0.0.1/town',
    'mysql://u:hush@127.0.0.1/town?password=hush',
    'sqlite://u:hush@/town?password=hush',
    'sqlite:///town?password=hush',
    'postgresql:/u:hush@127.0.0.1',
    'hush',
]

#: Values of a wrong type: of redis_url, and of dsn.
OTHER_TYPES = [
    b'redis://:hush@127.0.0.1:1',
    make_url('redis://:hush@127.0.0.1:1?password=hush'),
    {'password': 'hush'},
    Path('redis://:hush@127.0.0.1:1'),
]


def everything(error: BaseException | None) -> Iterator[str]:
    """Yield all texts of an error, and of the errors that it was raised from or beside."""
    if error is not None:
        yield ''.join(traceback.format_exception(error, chain=False))
        yield f'{error!r} {error} {error.args!r}'
        yield from everything(error.__cause__)
        yield from everything(error.__context__)


def assert_kept(*texts: object) -> None:
    """Assert that no password is in the texts."""
    for text in texts:
        assert SECRET not in str(text)


@pytest.fixture
def quiet(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[[], None]]:
    """Asserts that neither log nor output have a password; also at the end of the test."""
    caplog.set_level(0)

    def check() -> None:
        printed = capfd.readouterr()
        assert_kept(caplog.text, printed.out, printed.err, *map(repr, caplog.records))

    yield check
    check()


def fails(make: Callable[[], Any]) -> OrmCacheError:
    """Return the package's own error that a call raises, after a look at all of its texts."""
    with pytest.raises(OrmCacheError) as raised:
        make()
    assert_kept(*everything(raised.value))
    return raised.value


@pytest.mark.parametrize('url', REDIS_URLS)
def test_redis_url(url: str, tmp_path: Path, quiet: Callable[[], None]) -> None:
    """A wrong redis_url, or that of a server that is away, is an error of the package."""
    dsn = f'sqlite:///{tmp_path}/tenants'
    for lazy in False, True:
        settings: dict[str, Any] = {'base': Base, 'dsn': dsn, 'redis_url': url, 'lazy': lazy}
        settings['require_servers'] = not lazy
        try:
            cache = OrmCache(**settings)
        except (ConfigurationError, StoreUnreachable) as error:
            assert_kept(*everything(error))
            continue
        assert lazy
        with cache:
            assert_kept(repr(cache), repr(cache.settings), repr(cache.tags))
            fails(partial(cache.tags.snapshot, 'main'))
    quiet()


@pytest.mark.parametrize('dsn', DSNS)
def test_dsn(dsn: str, quiet: Callable[[], None]) -> None:
    """A wrong dsn, or that of a server that is away, is an error of the package."""
    fails(lambda: OrmCache(base=Base, dsn=dsn, require_servers=True))
    try:
        manager = SessionManager(dsn, Base)
    except DatabaseUnreachable as error:
        assert_kept(*everything(error))
    else:
        assert_kept(repr(manager.observer), manager.database.address)
        fails(manager.database.check)  # type: ignore[union-attr]
    quiet()


@pytest.mark.parametrize('name', ['redis_url', 'dsn', 'listen_dsn', 'engine_options'])
@pytest.mark.parametrize('value', OTHER_TYPES)
def test_wrong_types(name: str, value: Any, quiet: Callable[[], None]) -> None:
    """A value that is no string is refused by the name of its type."""
    if name == 'engine_options' and isinstance(value, dict):
        value = [('password', 'hush')]

    class Wrong(OrmCacheApp):
        pass

    told = str(fails(configured(Wrong, **{name: value}).commit))
    assert name in told
    assert type(value).__name__ in told
    fails(lambda: OrmCache(**{'base': Base, name: value}))
    quiet()


@pytest.mark.parametrize('dsn', DSNS)
def test_listen_dsn(dsn: str, quiet: Callable[[], None]) -> None:
    """A listen_dsn that can't be parsed is an error at the start."""
    settings: dict[str, Any] = {
        'base': Base, 'dsn': 'postgresql+psycopg://u:hush@127.0.0.1:1/town', 'listen': True,
        'lazy': True, 'listen_dsn': dsn,
    }  # fmt: skip
    try:
        with OrmCache(**settings) as cache:
            database = cache.observer.database
            with pytest.raises(Exception) as raised:
                database.own_connection(dsn)  # type: ignore[attr-defined]
            assert_kept(*everything(raised.value))
    except OrmCacheError as error:
        assert_kept(*everything(error))
    quiet()


def test_reprs(own_redis: RedisServer) -> None:
    """The settings are shown without those that may have a password, clients with an address."""
    secret: dict[str, Any] = {
        'dsn': 'postgresql://u:hush@h/x', 'redis_url': 'redis://:hush@h',
        'listen_dsn': 'postgresql://u:hush@h/x',
        'engine_options': {'connect_args': {'password': 'hush'}},
    }  # fmt: skip
    for kind in OrmCacheSettings, AppSettings:
        shown = repr(kind(namespace='town', **secret))
        assert "namespace='town'" in shown
        assert_kept(shown)
    sets = 'redis+sentinel://:hush@h/x?sentinel_password=hush', 'redis+cluster://:hush@h'
    for url in (own_redis.url.replace('//', '//:hush@'), *sets):
        client = connect(url, 1)
        assert_kept(repr(client), repr(client.breaker))
        assert '127.0.0.1' in repr(client) or '//h:' in repr(client)


@pytest.mark.parametrize('user', [':hush', 'hush:hush'])
def test_a_password_that_the_server_refuses(
    user: str, tmp_path: Path, quiet: Callable[[], None]
) -> None:
    """The error of a server that refuses the password does not have it."""

    class Wrong(OrmCacheApp):
        pass

    with RedisServer(password='another') as server:
        url = server.url.replace(':another', user)
        configured(Wrong, redis_url=url, dsn=f'sqlite:///{tmp_path}/tenants')
        fails(lambda: OrmCacheMiddleware(Wrong(), schema='main'))
    quiet()


@pytest.fixture
def command(quiet: Callable[[], None]) -> Callable[..., int]:
    """Runs the command line in this process; gives its exit code, and looks at the output."""

    def run(*arguments: str) -> int:
        code = main(arguments)
        quiet()
        return code

    return run


@pytest.mark.parametrize('url', REDIS_URLS[::5] + REDIS_URLS[-15:])
def test_redis_url_of_the_command_line(url: str, command: Callable[..., int]) -> None:
    """The commands tell what is wrong, and not the URL."""
    assert command('demo', '--tenants', '2', '--redis-url', url) == 2
    assert command('tags', '--redis-url', url) == 2
    assert command('evict', '--all', '--yes', '--redis-url', url) == 2


@pytest.mark.parametrize('dsn', DSNS)
def test_dsn_of_the_command_line(dsn: str, command: Callable[..., int]) -> None:
    """The commands tell what is wrong, and not the URL."""
    assert command('triggers', 'status', '--all', '--dsn', dsn) == 2
    assert command('demo', '--tenants', '2', '--dsn', dsn) == 2
    assert command('outbox', '--dsn', dsn) == 2


@pytest.mark.parametrize(
    'arguments',
    [
        ['postgresql://u:hush@h/x'],
        ['demo', 'postgresql://u:hush@h/x'],
        ['demo', '--tenants', 'postgresql://u:hush hush@h/x'],
        ['demo', '--redis', 'redis://:hush@h', '--redis-url'],
        ['demo', '--password=hush'],
        ['demo', '--port=redis://:hush@h'],
        ['demo', '-dsn=postgresql://u:hush@h/x'],
        ['triggers', 'status', '--dsn', 'postgresql://u:hush@h/x'],
        ['triggers', 'postgresql://u:hush@h/x', '--all'],
        ['triggers', 'status', '--all', '--dsn=postgresql://u:x@h/x', 'u:hush@h'],
        ['tags', '--app', 'postgresql://u:hush@h/x'],
        ['values', '--limit=redis://:hush@h', '--app', 'x:y'],
        ['explain', '--app', 'redis://:hush@h/0', 'name'],
        ['evict', 'redis://:hush@h', '--table', 'redis://:hush@h', '--app', 'x:y', '--all'],
    ],
)
def test_wrong_arguments(arguments: list[str], command: Callable[..., int]) -> None:
    """What is said of wrong arguments does not repeat them."""
    assert command(*arguments) == 2


def test_help_has_no_settings(command: Callable[..., int], monkeypatch: Any) -> None:
    """The help shows no value of the environment."""
    monkeypatch.setenv('ORMCACHE_TEST_DSN', 'postgresql://u:hush@h/x')
    for arguments in ['--help'], ['demo', '--help'], ['triggers', 'status', '--help']:
        assert command(*arguments) == 0
