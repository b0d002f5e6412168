"""Which calls of a function are one value, and which arguments it takes."""

from __future__ import annotations

import datetime
import enum
import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pytest

from onegov_ormcache import OrmCacheApp, orm_cached
from onegov_ormcache.errors import ArgumentError, PropertyError, VariantError
from tests.support.applications import Applications, value
from tests.support.counting import RedisCommands, Runs
from tests.support.models import User


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Number(enum.IntEnum):
    ONE = 1


class Rights(enum.IntFlag, boundary=enum.KEEP):
    READ = 1
    WRITE = 2


class Word(str):
    """A text of a type of its own."""


class Point(NamedTuple):
    x: int
    y: int


class Size(NamedTuple):
    width: int
    height: int


class WithoutRepr(datetime.tzinfo):
    """A time zone that says nothing about itself."""

    def utcoffset(self, moment: datetime.datetime | None) -> datetime.timedelta:
        return datetime.timedelta(hours=1)


UUID = uuid.UUID('12345678123456781234567812345678')
DAY = datetime.date(2026, 10, 25)
NOON = datetime.datetime(2026, 10, 25, 12)
ZURICH = datetime.datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo('Europe/Zurich'))

#: Each is a value of its own.
DISTINCT: list[Any] = [
    None, 'None', '', ' ', 0, False, 0.0, -0.0, 1, True, 1.0, '1', b'1', Decimal(1),
    Decimal('1.0'), Number.ONE, Colour.RED, Colour.BLUE, 'Colour.RED', Rights(1), Rights(3),
    Rights(8), Rights(16), UUID, str(UUID), DAY, str(DAY), datetime.datetime(2026, 10, 25), NOON,
    NOON.replace(tzinfo=datetime.UTC), ZURICH, ZURICH.replace(fold=1), datetime.time(12),
    datetime.timedelta(1), 86400, Word('x'), 'x', (), (1,), (True,), (1, 2), ((1,), 2), ('1,2',),
    Point(1, 2), Size(1, 2), 'x' * 500, 'x' * 501, float('inf'), '\0', 'a\0b', 'ab', '\ud800',
    '\ud801', 'é', 'e\u0301', 2**64, -(2**64), 10**5000, 10**5000 + 1,
]  # fmt: skip

#: None can be a part of a key.
REFUSED: list[Any] = [
    [1], {1: 2}, {1}, object(), User(id=1, name='a'), float('nan'), Decimal('nan'),
    Decimal('sNaN'), (1, float('nan')), (Decimal('sNaN'),), ([10**5000],), int, len,
    NOON.replace(tzinfo=WithoutRepr()), frozenset({1}), range(3), 1j,
]  # fmt: skip


class App(OrmCacheApp):
    """An app with functions of every form of parameters."""

    runs: Runs

    @orm_cached(policy=User)
    def one(self, value: Any) -> str:
        self.runs('one')
        return expected(value)

    @orm_cached(policy=User)
    def every(self, a: Any, /, b: Any = 2, *, c: Any = 3) -> list[Any]:
        self.runs('every')
        return [a, b, c]

    @orm_cached(policy=User)
    def defaults(self, a: int = 1, b: int = 2) -> list[int]:
        self.runs('defaults')
        return [a, b]


@pytest.fixture
def app(applications: Applications, runs: Runs) -> App:
    """The app on each back end in turn."""
    App.runs = runs
    return applications.start(App)


def expected(argument: Any) -> str:
    """Return what the creator of `one` computes."""
    if isinstance(argument, int) and argument.bit_length() > 1000:
        return hex(argument)
    return f'{type(argument).__name__}:{argument!r:.600}'


def test_arguments_that_differ(
    applications: Applications, app: App, tenant: str, runs: Runs
) -> None:
    """Arguments of another type or value are another value, for each tier and each process."""
    for each in (app, app, applications.elsewhere(app)):
        with each.request_scope(tenant):
            for _ in range(2):
                # forwards and backwards, so that each is the last hit of an equal one once
                for argument in (*DISTINCT, *reversed(DISTINCT)):
                    assert each.one(argument) == expected(argument)
    assert runs.count('one') == len(DISTINCT)


def test_equal_calls(app: App, tenant: str, runs: Runs) -> None:
    """Arguments by position, by name and by default are one value."""
    with app.request_scope(tenant):
        for _ in range(2):
            assert app.every(1) == app.every(1, 2) == app.every(1, b=2) == app.every(1, c=3)
            assert app.every(1, 2, c=3) == app.every(1, c=3, b=2) == [1, 2, 3]
        assert runs.count('every') == 1
        assert app.every(1, c=4) == app.every(1, 2, c=4) == [1, 2, 4]
        assert app.every(1, 4) == app.every(1, b=4) == [1, 4, 3]
        assert runs.count('every') == 3
        assert app.defaults() == app.defaults(1) == app.defaults(b=2) == [1, 2]
        assert app.defaults(a=2) == [2, 2]
        assert runs.count('defaults') == 2


@pytest.mark.parametrize('argument', REFUSED, ids=lambda argument: f'{type(argument).__name__}')
def test_arguments_that_can_not_be_a_key(app: App, tenant: str, argument: Any) -> None:
    """The error names the property, its place and the argument; nothing runs."""
    with app.request_scope(tenant):
        for call in (
            lambda: app.one(argument),
            lambda: app.one(value=argument),
            lambda: app.one.many([argument]),
            lambda: app.prefetch('one', args=[argument]),
            lambda: app.evict('one', argument),
            lambda: app.refresh('one', argument),
        ):
            with pytest.raises(ArgumentError, match=r'one .*test_arguments\.py:\d+.* is called'):
                call()
        assert app.one(1) == 'int:1'
    assert App.runs.count('one') == 1


@pytest.mark.parametrize(
    'call',
    [
        lambda app: app.every(),
        lambda app: app.every(1, 2, 3),
        lambda app: app.every(a=1),
        lambda app: app.every(1, d=1),
        lambda app: app.every(1, 2, b=2),
        lambda app: app.every.many([(1, 2, 3)]),
        lambda app: app.every.many([()]),
        lambda app: app.defaults.many([(1, 2, 3)]),
        lambda app: app.evict('every', 1, 2, 3),
        lambda app: app.refresh('every'),
        lambda app: app.prefetch('every', args=[()]),
    ],
)
def test_wrong_number_of_arguments(
    app: App, tenant: str, runs: Runs, call: Callable[[Any], Any]
) -> None:
    """The error says how the function is called."""
    with app.request_scope(tenant), pytest.raises(ArgumentError, match=r'is called as \('):
        call(app)
    assert not runs.total


def test_long_arguments(on_servers: Applications, tenant: str, runs: Runs) -> None:
    """A text of a megabyte is an argument like any other, and the key stays short."""
    App.runs = runs
    app = on_servers.start(App)
    long = 'x' * 2**20
    with RedisCommands(on_servers.backend.settings['redis_url']) as seen:
        for each in (app, on_servers.again(type(app))):
            for argument in (long, long + 'y', '\ud800' * 2**10):
                found = value(each, tenant, lambda app, a=argument: app.one(a))
                assert found == expected(argument)
    assert runs.count('one') == 3
    sent = max(len(part) for command in seen.commands for part in command)
    assert sent < 20_000
    assert all(len(key) < 600 for key in type(app).one.used_cache_keys)


def test_arguments_of_any_hash(app: App, tenant: str, runs: Runs) -> None:
    """An argument whose hash or comparison fails is compared by its text, like any other."""

    class Odd(str):
        def __hash__(self) -> int:
            raise ValueError('no hash')

    class Unequal(str):
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            raise ValueError('no comparison')

    with app.request_scope(tenant):
        for _ in range(2):
            app.one('x')
            assert app.one(Unequal('x')) == "Unequal:'x'"
            assert app.one(Odd('x')) == "Odd:'x'"
    assert runs.count('one') == 3


@pytest.mark.parametrize(
    'declare',
    [
        lambda app, *ids: None,
        lambda app, **ids: None,
        lambda app, id, *more: None,
        lambda app, id, **more: None,
        lambda *, app: None,
        lambda: None,
    ],
)
def test_creators_that_can_not_be_functions(declare: Any) -> None:
    """A creator that takes any number of arguments, or no instance, is refused where it is
    declared."""
    with pytest.raises(PropertyError, match=r'test_arguments\.py:\d+'):
        orm_cached(policy=User)(declare)
    with pytest.raises(PropertyError, match=r'test_arguments\.py:\d+'):
        class Wrong(OrmCacheApp):
            pass

        Wrong.orm_cached(policy=User, name='wrong')(declare)
        Wrong.commit()


def test_variants_keep_their_rules(applications: Applications, tenant: str, runs: Runs) -> None:
    """A function differs by role and vary like a property, and its hits do, too; a reader that
    differs by less is refused."""

    class Varied(OrmCacheApp):
        language: Any = 'de'
        identity: Any = None

        @orm_cached(policy=User, vary=lambda app: app.language, by_role=True, frozen=True)
        def greeting(self, name: str) -> Any:
            runs('greeting')
            return [self.language, name, getattr(self.identity, 'role', None)]

        @orm_cached(policy=User)
        def wrong(self, name: str) -> Any:
            return self.greeting(name)

    class Identity:
        def __init__(self, role: str) -> None:
            self.role = role

    app = applications.start(Varied)
    for _ in range(2):
        with app.request_scope(tenant):
            for language in 'de', 'fr', 'de':
                for role in 'admin', 'member', 'admin':
                    app.language, app.identity = language, Identity(role)
                    for name in 'x', 'y', 'x':
                        assert app.greeting(name) == (language, name, role)
                        assert app.greeting.many([name]) == {name: (language, name, role)}
    assert runs.count('greeting') == 8
    with app.request_scope(tenant), pytest.raises(VariantError, match=r'wrong reads .*greeting'):
        app.wrong('x')
