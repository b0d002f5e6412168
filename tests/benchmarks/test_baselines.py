"""The contestants that the package is compared with do what the benchmarks say they do.

Without this, the measured numbers would mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest

from tests.support.counting import RedisCommands

from . import schema as tables
from .baseline_seed import Seed
from .books import (
    BOOKS,
    RENAMED,
    WAYS,
    BookContestant,
    DogpileBooks,
    DogpileManyBooks,
    OrmCacheBooks,
    PlainBooks,
    QueriedBooks,
)
from .contestants import Contestant, Dogpile, OrmCache, Plain
from .measuring import Timing, interleaved
from .results import text_of

CountRedis = Callable[[], RedisCommands]


@pytest.fixture
def contestants(
    postgres_dsn: str, redis_url: str, make_tenant: Callable[[str], str]
) -> Iterator[dict[str, Contestant]]:
    """Make the contestants, each on a schema of its own."""
    made: dict[str, Contestant] = {}
    for at, cls in enumerate((OrmCache, Seed, Dogpile)):
        schema = make_tenant(f's{at}')
        tables.create(postgres_dsn, schema, nodes=100)
        one: Any = cls(postgres_dsn, redis_url, schema)
        made[one.name] = one
    made['no cache'] = Plain(postgres_dsn, schema)
    yield made
    for contestant in made.values():
        contestant.close()


@pytest.mark.parametrize(
    ('name', 'warm', 'commit'), [('seed design', 10, 2 * 5 * 10), ('dogpile.cache', 10, 1)]
)
def test_commands_of_the_baselines(
    contestants: dict[str, Contestant],
    redis_commands: CountRedis,
    name: str,
    warm: int,
    commit: int,
) -> None:
    """A warm request takes one Redis command per property. A commit takes the seed's design two
    commands per object and property, and dogpile.cache one in all."""
    contestant = contestants[name]
    contestant.requests(10, 1)
    with redis_commands() as redis:
        contestant.requests(10, 1)
    assert redis.count == warm
    with redis_commands() as redis:
        contestant.change(5)
    assert redis.count == commit


def test_all_see_the_same(contestants: dict[str, Contestant]) -> None:
    """Every contestant with a cache gives the rows that are in the database."""
    ours: Any = contestants['onegov_ormcache']
    seed: Any = contestants['seed design']
    dogpile: Any = contestants['dogpile.cache']
    plain: Any = contestants['no cache']
    with plain.request() as session:
        expected = [tuple(row) for row in plain.value(session, 3)]
    with ours.app.request_scope(ours.schema):
        assert [tuple(row) for row in ours.app.p3] == expected
    assert list(seed.p3) == expected
    assert dogpile.read(3) == expected
    assert len(expected) == tables.ITEMS // tables.CATEGORIES


@pytest.fixture
def readers(
    postgres_dsn: str, redis_url: str, make_tenant: Callable[[str], str]
) -> Iterator[list[BookContestant]]:
    """Make those who read books, each on a schema of its own."""
    made: list[BookContestant] = []
    number = count()

    def filled() -> str:
        schema = make_tenant(f'b{next(number)}')
        tables.create(postgres_dsn, schema)
        return schema

    made.append(PlainBooks(postgres_dsn, filled()))
    made.append(QueriedBooks(postgres_dsn, filled()))
    made.append(DogpileBooks(postgres_dsn, redis_url, filled()))
    made.append(DogpileManyBooks(postgres_dsn, redis_url, filled()))
    made.extend(OrmCacheBooks(postgres_dsn, redis_url, filled(), way) for way in WAYS)
    yield made
    for contestant in made:
        contestant.close()


def test_all_show_the_same_books(readers: list[BookContestant]) -> None:
    """Every contestant shows the books that are in the database, also after changes; those with a
    cache compute none that is warm, and all that are cold."""
    for contestant in readers:
        expected = [[f'Item {id} of category {id}', 0] for id in BOOKS]
        assert contestant.read_books().books == expected
        contestant.rename_book()
        contestant.change_all()
        books = contestant.read_books().books
        assert [value for _, value in books] == [1] * len(BOOKS)
        assert [id for id in BOOKS if books[id][0] != expected[id][0]] == [RENAMED]
        cold = contestant.runs
        contestant.forget()
        contestant.read_books()
        contestant.empty()
        warm = contestant.runs
        contestant.read_books()
        assert cold is not None
        assert warm is not None
        assert contestant.runs is not None
        if not isinstance(contestant, PlainBooks) or isinstance(contestant, DogpileBooks):
            assert warm == cold
        assert contestant.runs - warm in (1, len(BOOKS))


def test_contestants_take_turns() -> None:
    """Each round measures all of them, the order rotates, and warm-up does not count."""
    seen: list[str] = []

    def one(name: str, seconds: float) -> Callable[[], float]:
        def measure() -> float:
            seen.append(name)
            return seconds

        return measure

    timings = interleaved({'a': one('a', 1.0), 'b': one('b', 2.0)}, rounds=3, warm_up=1)
    assert ''.join(seen) == 'abbaabba'
    assert len(timings['a'].samples) == 3
    assert timings['b'].ratio(timings['a']) == 2.0


def test_a_ratio_is_of_pairs() -> None:
    """A slow moment that hits both contestants of a round does not change their ratio."""
    assert Timing((2.0, 20.0, 2.0)).ratio(Timing((1.0, 10.0, 1.0))) == 2.0


@pytest.mark.parametrize(
    ('seconds', 'text'), [(3.4e-8, '34 ns'), (0.00012, '120 us'), (0.5, '500 ms'), (2.0, '2 s')]
)
def test_times_are_readable(seconds: float, text: str) -> None:
    """A time is shown in the unit that makes it a short number."""
    assert text_of(seconds, 'seconds') == text
