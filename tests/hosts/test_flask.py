"""Flask and Flask-SQLAlchemy on PostgreSQL and Redis, as docs/flask.rst shows them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from flask import Flask, g, request
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Connection, event, insert, text
from sqlalchemy.orm import Session

from onegov_ormcache import OrmCache, observe, orm_cached
from onegov_ormcache.errors import ConfigurationError
from tests.support.backends import Backend
from tests.support.models import Base, User

from .web_towns import WebTown

#: The ways to add a name.
WAYS: dict[str, Callable[[Any, str], object]] = {
    'orm': lambda session, name: session.add(User(name=name)),
    'core': lambda session, name: session.execute(insert(User).values(name=name)),
    'bulk': lambda session, name: session.bulk_insert_mappings(User, [{'name': name}]),
    'text': lambda session, name: session.execute(
        text('INSERT INTO users (name) VALUES (:name)'), {'name': name}
    ),
    'driver': lambda session, name: session.connection().connection.cursor().execute(
        'INSERT INTO users (name) VALUES (%s)', (name,)
    ),
}

#: What a view does after it has added a name.
ENDS: dict[str, Callable[[Session], object]] = {
    'commit': lambda session: session.commit(),
    'rollback': lambda session: session.rollback(),
    'nothing': lambda session: None,
    'error': lambda session: 1 // 0,
}


class Town:
    """What the application shows."""

    def __init__(self, db: SQLAlchemy, cache: OrmCache) -> None:
        self.db, self.orm_cache = db, cache

    @orm_cached(policy=User)
    def names(self) -> list[str]:
        return [user.name for user in self.db.session.query(User).order_by(User.id)]

    @orm_cached(policy='auto')
    def sessions(self) -> list[bool]:
        session = self.db.session()
        session.query(User).all()
        return [session is self.orm_cache.session(), g.user in session]


class FlaskTown(WebTown):
    """An application, which may stand for a process.

    :param translates: let SQLAlchemy write the schema before each table, instead of setting the
        search path.
    """

    def __init__(self, backend: Backend, translates: bool = False) -> None:
        settings = backend.settings
        self.app = Flask('town')
        self.app.config['SQLALCHEMY_DATABASE_URI'] = settings['dsn']
        self.db = SQLAlchemy(model_class=Base)
        self.db.init_app(self.app)
        with self.app.app_context():
            self.engine = self.db.engine
            if not translates:
                event.listen(self.engine, 'begin', self._set_search_path)
            observer = observe(
                engine=self.engine,
                sessions=self.db.session,
                metadata=self.db.metadata,
                schema_of=lambda connection: g.tenant,
                schema=lambda: g.tenant,
            )
        self.cache = OrmCache(
            observer=observer,
            lazy=True,
            redis_url=settings['redis_url'],
            namespace=settings['namespace'],
        )
        self.town = Town(self.db, self.cache)
        #: Called by the view that adds a name, before the end of its transaction.
        self.meanwhile: Callable[[], object] = lambda: None

        @self.app.before_request
        def set_tenant() -> None:
            g.tenant = request.headers['X-Tenant']
            if translates:
                options = {'schema_translate_map': {None: g.tenant}}
                self.db.session.connection(execution_options=options)

        self.app.before_request(self.cache.begin_request)
        self.app.add_url_rule('/', view_func=lambda: self.town.names)
        self.app.add_url_rule('/', 'add', self.add, methods=['POST'])
        self.app.add_url_rule('/sessions', view_func=self.sessions)

    def _set_search_path(self, connection: Connection) -> None:
        connection.exec_driver_sql(f'SET LOCAL search_path TO "{g.tenant}"')

    # its views

    def add(self) -> list[str]:
        assert self.town.names is not None
        WAYS[request.form['way']](self.db.session, request.form['name'])
        names = self.town.names
        self.meanwhile()
        ENDS[request.form['end']](self.db.session)
        return names

    def sessions(self) -> list[bool]:
        g.user = self.db.session.query(User).first()
        return self.town.sessions

    # its clients

    def get(self, tenant: str, path: str = '/') -> Any:
        return self.app.test_client().get(path, headers={'X-Tenant': tenant}).json

    def post(self, tenant: str, name: str, way: str = 'orm', end: str = 'commit') -> Any:
        data = {'name': name, 'way': way, 'end': end}
        return self.app.test_client().post('/', data=data, headers={'X-Tenant': tenant}).json


#: The application that `make_town` makes.
TOWN = FlaskTown


def test_flask_processes_share_values(
    town: FlaskTown, other_town: FlaskTown, tenant: str
) -> None:
    """What one process has computed, the other one gets from the shared tier."""
    town.post(tenant, 'Ada')
    other_town.get(tenant)  # its first transaction finds out which database it is
    town.post(tenant, 'Grace')
    assert town.tiers(tenant) == ['creator']
    assert other_town.tiers(tenant) == ['shared']
    assert town.tiers(tenant) == other_town.tiers(tenant) == ['process']


@pytest.mark.parametrize('way', WAYS)
def test_flask_sees_every_kind_of_change(
    town: FlaskTown, other_town: FlaskTown, tenant: str, way: str
) -> None:
    """A request sees its own change at once, and the next request of every process after it."""
    assert town.get(tenant) == other_town.get(tenant) == []
    assert town.post(tenant, 'Ada', way) == ['Ada']
    assert other_town.get(tenant) == town.get(tenant) == ['Ada']


def test_flask_shows_nothing_uncommitted(
    town: FlaskTown, other_town: FlaskTown, tenant: str
) -> None:
    """A request of another process, or of another thread, sees nothing of an open transaction."""
    seen: list[Any] = []

    def look() -> None:
        with ThreadPoolExecutor(1) as thread:
            seen.append(thread.submit(town.get, tenant).result())
        seen.append(other_town.get(tenant))

    town.meanwhile = look
    assert town.post(tenant, 'Ada') == ['Ada']
    assert seen == [[], []]
    assert town.get(tenant) == other_town.get(tenant) == ['Ada']


@pytest.mark.parametrize('end', ['rollback', 'nothing', 'error'])
@pytest.mark.parametrize('way', WAYS)
def test_flask_keeps_nothing_of_a_rollback(
    town: FlaskTown, other_town: FlaskTown, tenant: str, way: str, end: str
) -> None:
    """Of a transaction that was not committed, nothing is left."""
    town.post(tenant, 'Ada')
    town.post(tenant, 'Grace', way, end)
    assert town.get(tenant) == other_town.get(tenant) == ['Ada']


def test_flask_creator_has_a_session_of_its_own(town: FlaskTown, tenant: str) -> None:
    """While a creator runs, `db.session` is a session without the objects of the view."""
    town.post(tenant, 'Ada')
    assert town.get(tenant, '/sessions') == [True, False]


@pytest.mark.parametrize('translates', [False, True])
def test_flask_tenants(
    make_town: Callable[..., FlaskTown], tenant: str, other_tenant: str, translates: bool
) -> None:
    """Each request reads and changes its own tenant, and a change evicts there alone."""
    town, other_town = make_town(translates=translates), make_town(translates=translates)
    for name in tenant, other_tenant:
        assert town.get(name) == other_town.get(name) == []
    town.post(tenant, 'Ada')
    assert other_town.get(other_tenant) == town.get(other_tenant) == []
    assert other_town.get(tenant) == town.get(tenant) == ['Ada']
    other_town.post(other_tenant, 'Olga')
    assert town.get(other_tenant) == ['Olga']
    assert town.tiers(tenant) == ['process']
    assert town.tiers(other_tenant) == ['process']


def test_flask_threads(town: FlaskTown, other_town: FlaskTown, tenant: str) -> None:
    """Threads of two processes that add names each see what was committed before."""

    def add(number: int) -> bool:
        one, two = (town, other_town) if number % 2 else (other_town, town)
        name = f'name {number}'
        return name in one.post(tenant, name) and name in two.get(tenant)

    with ThreadPoolExecutor(6) as threads:
        assert all(threads.map(add, range(48)))
    assert len(town.get(tenant)) == 48
    assert town.get(tenant) == other_town.get(tenant)


# several databases


class Binds:
    """An application whose notes lie in a second database.

    :param names: by bind key, the tenant's name; only the engines of these are observed.
    """

    def __init__(self, backend: Backend, urls: dict[str, str], names: dict[Any, str]) -> None:
        self.app = Flask('town')
        self.app.config['SQLALCHEMY_DATABASE_URI'] = urls['town']
        self.app.config['SQLALCHEMY_BINDS'] = {'archive': urls['archive']}
        self.db = db = SQLAlchemy()

        class Person(db.Model):  # type: ignore[name-defined, misc]
            id = db.Column(db.Integer, primary_key=True)
            name = db.Column(db.String)

        class Note(db.Model):  # type: ignore[name-defined, misc]
            __bind_key__ = 'archive'
            id = db.Column(db.Integer, primary_key=True)
            name = db.Column(db.String)

        class Town:
            @orm_cached(policy=Person)
            def people(self) -> list[str]:
                return [person.name for person in db.session.query(Person)]

            @orm_cached(policy=Note)
            def notes(self) -> list[str]:
                return [note.name for note in db.session.query(Note)]

            @orm_cached(policy=[Person, Note])
            def both(self) -> list[list[str]]:
                return [self.people, self.notes]

        db.init_app(self.app)
        with self.app.app_context():
            self.engines = list(db.engines.values())
            by_engine = {db.engines[key].url: name for key, name in names.items()}
            observer = observe(
                engine=[db.engines[key] for key in names],
                sessions=db.session,
                metadata=list(db.metadatas.values()),
                schema_of=lambda connection: by_engine.get(connection.engine.url, 'public'),
                schema=lambda: 'public',
            )
            db.create_all()
        self.cache = Town.orm_cache = OrmCache(  # type: ignore[attr-defined]
            observer=observer,
            redis_url=backend.settings['redis_url'],
            namespace=backend.settings['namespace'],
        )
        self.models = {'people': Person, 'notes': Note}
        self.app.before_request(self.cache.begin_request)
        self.app.add_url_rule('/<name>', view_func=lambda name: getattr(Town(), name))
        self.app.add_url_rule('/<name>', 'add', self.add, methods=['POST'])

    def add(self, name: str) -> list[str]:
        self.db.session.add(self.models[name](name=request.form['name']))
        self.db.session.commit()
        return []

    def get(self, name: str) -> Any:
        return self.app.test_client().get(name).json

    def close(self) -> None:
        self.cache.close()
        for engine in self.engines:
            engine.dispose()


@pytest.mark.parametrize('names', [{None: 'public', 'archive': 'archive'}, {None: 'public'}])
def test_flask_binds(
    servers_backend: Backend,
    make_database: Callable[[str], str],
    caplog: pytest.LogCaptureFixture,
    names: dict[Any, str],
) -> None:
    """Values of the default engine are cached, those that are read from another one are not;
    none is stale, whether that one is observed or not."""
    urls = {name: make_database(name) for name in ('town', 'archive')}
    with ExitStack() as stack:
        here, elsewhere = (Binds(servers_backend, urls, names) for _ in range(2))
        stack.callback(here.close)
        stack.callback(elsewhere.close)
        for number, (name, values) in enumerate(
            [('people', [['a'], []]), ('notes', [['a'], ['b']]), ('people', [['a', 'c'], ['b']])]
        ):
            for each in here, elsewhere:
                each.get('both')
            here.app.test_client().post(name, data={'name': 'abc'[number]})
            for each in here, elsewhere:
                assert each.get('both') == values
                assert [each.get('people'), each.get('notes')] == values
        with here.cache.recording() as events:
            here.get('people')
            here.get('notes')
        assert [event.tier for event in events] == ['process', 'creator']
    assert 'Town.notes is not stored: it used' in caplog.text


def test_flask_binds_of_one_name(
    servers_backend: Backend, make_database: Callable[[str], str]
) -> None:
    """One name for the tenants of two databases is an error."""
    urls = {name: make_database(name) for name in ('town', 'archive')}
    with pytest.raises(ConfigurationError, match='give the tenants of each other names'):
        Binds(servers_backend, urls, {None: 'public', 'archive': 'public'})
