"""The framework of the fixtures by itself, without cached properties: it is what it is said to
be, so that tests of the cache on it mean something."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import transaction
from sqlalchemy import func, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from webtest import TestApp

from fixtures.framework.connections import StrangerError
from fixtures.framework.data import load
from fixtures.framework.framework import Framework
from fixtures.framework.models import Amount, Base, FileBase, LedgerBase, Page, Ticket, User
from fixtures.framework.server import Server
from fixtures.framework.session_manager import FrameworkSessionManager

KINDS: list[dict[str, Any]] = [
    {},
    {'twophase': True},
    {'keep_session': True},
    {'twophase': True, 'keep_session': True},
    {'isolation_level': 'READ COMMITTED'},
]


class Plain(Framework):
    """An application on the framework that has no cached property."""


@Plain.path(path='')
class Root:
    """All users."""


@Plain.json(model=Root)
def view_names(self: Root, request: Any) -> dict[str, Any]:
    role = getattr(request.identity, 'role', None)
    return {'names': names(request.app.session()), 'role': role}


@Plain.json(model=Root, request_method='POST')
def add(self: Root, request: Any) -> dict[str, Any]:
    request.app.request_cache['attempts'] = request.app.request_cache.get('attempts', 0) + 1
    count = request.app.session().scalar(select(func.count()).select_from(User))
    request.app.before_write()
    request.app.session().add(User(name=f'{request.POST["name"]} {count}', role='member'))
    request.app.session().flush()
    if 'error' in request.POST:
        raise RuntimeError('after the change')
    if 'status' in request.POST:
        request.after(lambda response: setattr(response, 'status_code', 422))
    return {'attempts': request.app.request_cache['attempts']}


def names(session: Session) -> list[str]:
    return list(session.scalars(select(User.name).order_by(User.id)))


Configure = Callable[..., Plain]


@pytest.fixture
def configure(postgres_dsn: str, make_tenant: Callable[[str], str]) -> Iterator[Configure]:
    """Makes applications with two tenants, springfield and shelbyville."""
    made: list[Plain] = []

    def configure(**cfg: Any) -> Plain:
        app = Plain()
        app.configure_application(postgres_dsn, Base, namespace=make_tenant('town'), **cfg)
        app.session_manager.bases += [FileBase, LedgerBase]
        vars(app)['before_write'] = lambda: None
        made.append(app)
        for tenant in ('shelbyville', 'springfield'):
            load(app, tenant)
        return app

    yield configure
    transaction.abort()
    for app in made:
        app.session_manager.release_sessions()
        app.close()


@pytest.fixture
def app(configure: Configure) -> Plain:
    return configure()


@pytest.fixture
def sessions(app: Plain) -> FrameworkSessionManager:
    return app.session_manager


def visitor(app: Framework, tenant: str = 'springfield', **environ: str) -> TestApp:
    application = Server(app)

    def below(environ: dict[str, Any], start_response: Any) -> Any:
        environ['PATH_INFO'] = f'/{app.namespace}/{tenant}{environ["PATH_INFO"]}'
        return application(environ, start_response)

    return TestApp(below, extra_environ=environ)


# schemas and connections


def test_tenants_are_apart(app: Plain) -> None:
    """One thread's tenants have sessions, rows and caches of their own."""
    here = app.session()
    assert app.schema == f'{app.namespace}-springfield'
    app.cache.set('key', 1)
    app.schema_cache['key'] = 1
    app.set_application_id(f'{app.namespace}/shelbyville')
    there = app.session()
    assert here is not there
    assert names(here)[0] == 'Springfield Ada'
    assert names(there)[0] == 'Shelbyville Ada'
    assert not app.cache.get('key')
    assert 'key' not in app.schema_cache


def test_threads_have_tenants_of_their_own(app: Plain) -> None:
    """What a thread works for is not what another one works for, nor is its request cache."""
    app.request_cache['key'] = 1

    def elsewhere() -> tuple[str | None, dict[str, Any]]:
        return app.session_manager.current_schema, app.request_cache

    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(elsewhere).result() == (None, {})
        with pytest.raises(RuntimeError, match='no tenant'):
            thread.submit(lambda: app.schema).result()
    assert app.request_cache == {'key': 1}


def test_search_path(app: Plain, sessions: FrameworkSessionManager) -> None:
    """Each statement of a session has its schema's path, on whichever connection it runs."""
    for tenant in ('springfield', 'shelbyville', 'springfield'):
        app.set_application_id(f'{app.namespace}/{tenant}')
        path = app.session().scalar(text('SHOW search_path'))
        assert path == f'"{app.namespace}-{tenant}", extensions'
        assert app.session().connection().get_execution_options()['schema'] == app.schema
        assert app.session().info == {'schema': app.schema}
        transaction.abort()
    assert sessions.listeners.connects == 1


def test_schemas_are_created_by_many_at_once(app: Plain) -> None:
    """Threads that create the same tenant at once do not fail, and all bases have tables."""
    start = threading.Barrier(4)

    def create(number: int) -> int | None:
        # as if it were a process of its own
        app.session_manager._created.clear()
        start.wait(10)
        app.set_application_id(f'{app.namespace}/ogdenville')
        try:
            return app.session().scalar(select(func.count()).select_from(Amount))
        finally:
            transaction.abort()

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(create, range(4))) == [0] * 4
    found = app.session_manager.list_schemas(app.namespace)
    assert found == [
        f'{app.namespace}-{tenant}' for tenant in ('ogdenville', 'shelbyville', 'springfield')
    ]


@pytest.mark.parametrize('name', ['', 'a"b', 'pg_x', 'public', 'Upper', 'x' * 64])
def test_bad_schemas(sessions: FrameworkSessionManager, name: str) -> None:
    with pytest.raises(ValueError, match='no name of a schema'):
        sessions.set_current_schema(name)


def test_strangers_are_refused(sessions: FrameworkSessionManager) -> None:
    """A transaction on a connection that is not the framework's is an error, and is counted."""
    begins = sessions.listeners.begins
    with sessions.engine.connect() as connection, pytest.raises(StrangerError, match='schema'):
        connection.execute(text('SELECT 1'))
    assert (sessions.listeners.begins, sessions.listeners.strangers) == (begins + 1, 1)
    with sessions.maintenance() as connection:
        connection.execute(text('SELECT 1'))
    assert sessions.listeners.strangers == 1


def test_connections_opened_by_strangers_are_counted(sessions: FrameworkSessionManager) -> None:
    """A thread that works for nobody has no reason to open a database connection."""
    opened = sessions.listeners.connects
    timeouts = []

    def open_one() -> None:
        # no transaction is begun
        raw = sessions.engine.raw_connection()
        timeouts.append(raw.cursor().execute('SHOW statement_timeout').fetchone())
        raw.close()

    app_session = sessions.session()
    app_session.connection()
    with ThreadPoolExecutor(1) as thread:
        thread.submit(open_one).result()
    assert (sessions.listeners.connects, sessions.listeners.strangers) == (opened + 1, 1)
    assert timeouts == [('1min',)]


# signals


def test_signals(app: Plain, sessions: FrameworkSessionManager) -> None:
    """Each flush tells which objects it has inserted, updated and deleted, and in which session
    and schema."""
    seen: list[tuple[str, str, object, object]] = []
    for kind in ('insert', 'update', 'delete'):

        def receive(schema: str, obj: object, session: object, kind: str = kind) -> None:
            seen.append((kind, schema, obj, session))

        getattr(sessions, f'on_{kind}').connect(receive, weak=False)
    session = app.session()
    ada = session.scalars(select(User).where(User.role == 'admin')).one()
    ticket = session.scalars(select(Ticket).limit(1)).one()
    page = Page(title='New')
    session.add(page)
    ada.name = 'Changed'
    session.delete(ticket)
    session.flush()
    assert seen == [
        (kind, app.schema, obj, session)
        for kind, obj in (('insert', page), ('update', ada), ('delete', ticket))
    ]


# transactions


@pytest.mark.parametrize('kind', KINDS, ids=str)
def test_requests_commit_and_roll_back(configure: Configure, kind: dict[str, Any]) -> None:
    """A request's changes are committed, unless it fails or answers with an error; nothing of
    a failed request is in a later commit."""
    app = configure(**kind)
    client = visitor(app)
    before = client.get('/').json['names']
    assert client.post('/', {'name': 'Dot'}).json == {'attempts': 1}
    with pytest.raises(RuntimeError, match='after the change'):
        client.post('/', {'name': 'Lost', 'error': '1'})
    client.post('/', {'name': 'Lost', 'status': '1'}, status=422)
    client.post('/', {'name': 'Eve'})
    assert client.get('/').json['names'] == [*before, 'Dot 3', 'Eve 4']
    assert visitor(app, 'shelbyville').get('/').json['names'][0] == 'Shelbyville Ada'
    assert app.session_manager.listeners.strangers == 0
    assert 'Checked out connections: 0' in app.session_manager.engine.pool.status()


def test_nobody_else_commits(app: Plain) -> None:
    """The thread's transaction commits a session; the session itself refuses to."""
    app.session().add(User(name='Dot', role='member'))
    with pytest.raises(AssertionError, match='transaction manager'):
        app.session().commit()


def meet(app: Plain, requests: int) -> list[Any]:
    """Send requests at once, all of which read before the first one writes."""
    all_have_read = threading.Barrier(requests)
    waited = threading.local()

    def wait_once() -> None:
        if not hasattr(waited, 'done'):
            waited.done = True
            all_have_read.wait(10)

    vars(app)['before_write'] = wait_once

    def post(number: int) -> Any:
        try:
            return visitor(app).post('/', {'name': 'New'}).json['attempts']
        except OperationalError as error:
            return type(error.orig).__name__

    with ThreadPoolExecutor(requests) as threads:
        return list(threads.map(post, range(requests)))


def test_second_attempt(app: Plain) -> None:
    """Of two SERIALIZABLE requests that each read what the other one changes, one is answered
    by a second attempt, which sees the other's change."""
    assert sorted(meet(app, 2)) == [1, 2]
    assert visitor(app).get('/').json['names'][3:] == ['New 3', 'New 4']


def test_no_third_attempt(app: Plain) -> None:
    """A request whose second attempt meets another one fails."""
    failures = iter([True, True, False])

    def fail() -> None:
        if next(failures):
            statement = "DO $$ BEGIN RAISE EXCEPTION 'conflict' USING ERRCODE = '40001'; END $$"
            app.session().execute(text(statement))

    vars(app)['before_write'] = fail
    with pytest.raises(OperationalError, match='conflict'):
        visitor(app).post('/', {'name': 'New'})
    assert visitor(app).post('/', {'name': 'New'}).json == {'attempts': 1}


# the server


def test_server(app: Plain) -> None:
    """A request has the tenant of its path, and the role of its header."""
    assert visitor(app).get('/').json['role'] is None
    assert visitor(app, HTTP_X_ROLE='admin').get('/').json['role'] == 'admin'
    visitor(app, 'nowhere').get('/', status=404)
    TestApp(Server(app)).get('/', status=404)
    assert f'{app.namespace}-nowhere' not in app.session_manager.list_schemas()


def test_process(app: Plain, postgres_dsn: str) -> None:
    """The town in a process of its own prints its port, and answers."""
    settings = {'dsn': postgres_dsn, 'redis_url': None, 'namespace': app.namespace}
    command = [sys.executable, '-m', 'fixtures.framework.serving', json.dumps(settings)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            url = f'http://127.0.0.1:{port}/{app.namespace}/nowhere'
            with pytest.raises(urllib.error.HTTPError, match='404'):
                urllib.request.urlopen(url, timeout=30)
        finally:
            process.terminate()
