"""A host with several engines. Each tenant lies in the database of one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from onegov_ormcache import OrmCache, observe, orm_cached
from onegov_ormcache.errors import ConfigurationError
from tests.support.models import Base, User


class Towns:
    """A program with an engine for each town, and a session in it.

    :param folder: where the files are.
    :param name_of: returns the name of a town's tenant.
    """

    def __init__(self, folder: Path, name_of: Callable[[str], str] = str) -> None:
        self.engines = {
            town: create_engine(f'sqlite:///{folder}/{town}.sqlite') for town in ('a', 'b')
        }
        factory = sessionmaker()
        self.name_of = name_of
        self.observer = observe(
            engine=self.engines.values(),
            sessions=factory,
            metadata=Base,
            schema_of=lambda connection: name_of(Path(str(connection.engine.url.database)).stem),
        )
        for engine in self.engines.values():
            Base.metadata.create_all(engine)
        self.orm_cache = OrmCache(observer=self.observer)
        self.sessions = {town: factory(bind=engine) for town, engine in self.engines.items()}

    def go_to(self, town: str) -> Session:
        """Work for a town, with its session."""
        self.orm_cache.enter_scope(self.name_of(town), session=self.sessions[town])
        return self.sessions[town]

    def close(self) -> None:
        for session in self.sessions.values():
            session.close()
        self.orm_cache.close()
        for engine in self.engines.values():
            engine.dispose()

    @orm_cached(policy=User)
    def names(self) -> list[str]:
        return list(self.orm_cache.session().scalars(select(User.name).order_by(User.id)))


@pytest.fixture
def make_towns(tmp_path: Path) -> Iterator[Callable[..., Towns]]:
    """Makes the program."""
    made: list[Towns] = []

    def make(name_of: Callable[[str], str] = str) -> Towns:
        made.append(Towns(tmp_path, name_of))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_each_tenant_in_its_database(make_towns: Callable[..., Towns]) -> None:
    """Each tenant's values are those of its database, and a change there evicts them alone."""
    towns = make_towns()
    for town in 'a', 'b':
        session = towns.go_to(town)
        assert towns.names == []
        session.add(User(name=town))
        session.commit()
        assert towns.names == [town]
        session.rollback()
    with towns.orm_cache.recording() as events:
        towns.go_to('a').add(User(name='c'))
        towns.sessions['a'].commit()
        assert towns.names == ['a', 'c']
        towns.go_to('b')
        assert towns.names == ['b']
    assert [event.tier for event in events] == [None, 'creator', 'process']


def test_one_name_for_two_databases(make_towns: Callable[..., Towns]) -> None:
    """A name that schema_of gives for connections of two databases is refused."""
    with pytest.raises(ConfigurationError, match='give the tenants of each other names'):
        make_towns(lambda town: 'public')


def test_engine_that_nobody_observes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A value that a session has read from an engine that is not observed is not stored."""
    observed, other = (create_engine(f'sqlite:///{tmp_path}/{name}.sqlite') for name in 'ab')
    sessions = scoped_session(sessionmaker(bind=observed, binds={User: other}))
    observer = observe(
        engine=observed,
        sessions=sessions,
        metadata=Base,
        schema_of=lambda connection: 'public',
        schema=lambda: 'public',
    )
    for engine in observed, other:
        Base.metadata.create_all(engine)

    class Town:
        orm_cache = OrmCache(observer=observer)

        @orm_cached(policy=User)
        def names(self) -> list[str]:
            return list(sessions().scalars(select(User.name)))

    with Town.orm_cache:
        assert Town().names == []
        sessions().add(User(name='Ada'))
        sessions().commit()
        assert Town().names == ['Ada']
        sessions.remove()
    assert 'b.sqlite), which nobody observes' in caplog.text
