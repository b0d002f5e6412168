"""The tween: one transaction per request, tried again after a conflict."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from webob.exc import HTTPBadRequest, HTTPCreated, HTTPFound, HTTPServiceUnavailable
from webtest import TestApp as Client

from onegov_ormcache import (
    OrmCache,
    OrmCacheApp,
    OrmCacheMiddleware,
    RetryableConflict,
    orm_cached,
    transaction_tween_factory,
)
from onegov_ormcache.web import tween
from tests.support.applications import Applications, change, value
from tests.support.counting import Runs
from tests.support.models import Base, Group, User
from tests.support.servers import RedisServer


class Root:
    """The model at /."""


class App(OrmCacheApp):
    """Shows the users' names; each test adds a view that changes users."""

    @orm_cached(policy=User)
    def names(self) -> Any:
        return self.session().query(User.name).order_by(User.name)


App.path(path='')(Root)


@App.view(model=Root)
def read(self: Root, request: Any) -> str:
    return ','.join(row.name for row in request.app.names)


def client_of(applications: Applications, tenant: str, view: Any, **settings: Any) -> Client:
    """A client of an app that answers POST by this view."""

    class Own(App):
        pass

    Own.view(model=Root, request_method='POST')(view)

    @Own.view(model=ZeroDivisionError)
    def error(self: Exception, request: Any) -> str:
        @request.after
        def after(response: Any) -> None:
            response.status_code = 500

        return 'error view'

    return Client(OrmCacheMiddleware(applications.start(Own, **settings), schema=tenant))


def test_commits(applications: Applications, tenant: str) -> None:
    """A request's changes are committed when its response is made."""

    def view(self: Root, request: Any) -> str:
        request.app.session().add(User(name=request.params['name']))
        return ','.join(row.name for row in request.app.names)

    client = client_of(applications, tenant, view)
    assert client.get('/').text == ''
    assert client.post('/', {'name': 'a'}).text == 'a'
    assert client.get('/').text == 'a'


@pytest.mark.parametrize('raised', [HTTPFound(location='/'), HTTPCreated()])
def test_raised_success_commits(applications: Applications, tenant: str, raised: Any) -> None:
    """A raised redirect or success is sent as the response, and the changes are committed."""

    def view(self: Root, request: Any) -> str:
        request.app.session().add(User(name='a'))
        raise raised

    client = client_of(applications, tenant, view)
    assert client.post('/').status_code == raised.code
    assert client.get('/').text == 'a'


def test_exceptions_roll_back(applications: Applications, tenant: str) -> None:
    """An exception rolls back, also if an exception view makes a response of it."""
    for error in ZeroDivisionError, HTTPBadRequest:

        def view(self: Root, request: Any, error: Any = error) -> str:
            request.app.session().add(User(name='a'))
            assert request.app.names
            raise error

        client = client_of(applications, tenant, view)
        client.post('/', status='*')
        assert client.get('/').text == ''
        client.app.app.close_orm_cache()


@pytest.mark.parametrize(
    ('status', 'veto', 'kept'),
    [
        (200, 'default', True),
        (302, 'default', True),
        (404, 'default', False),
        (500, 'default', False),
        (404, None, True),
        (200, lambda request, response: True, False),
        (500, lambda request, response: 'X-Keep' not in response.headers, True),
    ],
)
def test_commit_veto(
    applications: Applications, tenant: str, status: int, veto: Any, kept: bool
) -> None:
    """A vetoed response is sent, and its changes are rolled back."""

    def view(self: Root, request: Any) -> str:
        request.app.session().add(User(name='a'))
        response = request.ResponseClass('body', status=status)
        response.headers['X-Keep'] = '1'
        return response  # type: ignore[no-any-return]

    settings = {} if veto == 'default' else {'commit_veto': veto}
    client = client_of(applications, tenant, view, **settings)
    assert client.post('/', status=status).text == 'body'
    assert client.get('/').text == ('a' if kept else '')


def test_each_attempt_begins_anew(applications: Applications, tenant: str, runs: Runs) -> None:
    """Each attempt has an empty request tier, the whole body, and no attribute or environ key
    of the attempt before; the last attempt gives the response."""

    def view(self: Root, request: Any) -> str:
        runs('view')
        assert not request.app.request_cache
        assert not hasattr(request, 'word')
        assert 'word' not in request.environ
        assert request.body_file.read() == b'the body'
        assert request.unconsumed == []
        request.word = request.environ['word'] = 'left'
        request.app.session().add(User(name=f'a{runs.count("view")}'))
        names = ','.join(row.name for row in request.app.names)
        if runs.count('view') < 3:
            raise RetryableConflict('again')
        return names

    client = client_of(applications, tenant, view)
    assert client.post('/', 'the body').text == 'a3'
    assert client.get('/').text == 'a3'
    assert runs.count('view') == 3


@pytest.mark.parametrize('attempts', [1, 2, 5])
def test_attempts_end(
    applications: Applications, tenant: str, runs: Runs, attempts: int
) -> None:
    """After `attempts` attempts the answer is 503, and nothing is committed."""

    def view(self: Root, request: Any) -> str:
        runs('view')
        request.app.session().add(User(name='a'))
        raise RetryableConflict('again')

    client = client_of(applications, tenant, view, attempts=attempts)
    assert client.post('/', status=503).headers['Retry-After'] == '1'
    assert runs.count('view') == attempts
    assert client.get('/').text == ''


def test_other_errors_are_not_tried_again(
    applications: Applications, tenant: str, runs: Runs
) -> None:
    """An error that is no conflict is raised at once."""

    def view(self: Root, request: Any) -> str:
        runs('view')
        request.app.session().execute(text('SELECT * FROM nothing'))
        return ''

    client = client_of(applications, tenant, view)
    with pytest.raises(Exception, match='nothing'):
        client.post('/')
    assert runs.count('view') == 1


def test_wrapped_conflicts_are_tried_again(
    applications: Applications, tenant: str, runs: Runs
) -> None:
    """A conflict that the application has wrapped in another error is tried again, too."""

    def view(self: Root, request: Any) -> str:
        runs('view')
        if runs.count('view') == 1:
            try:
                raise RetryableConflict('again')
            except RetryableConflict as error:
                raise HTTPBadRequest from error
        return 'done'

    client = client_of(applications, tenant, view)
    assert client.post('/').text == 'done'


def test_serialization_failure_is_tried_again(
    on_servers: Applications, tenant: str, runs: Runs
) -> None:
    """Of two SERIALIZABLE requests that conflict, the second runs again and sees the first."""
    read_both = threading.Barrier(2)

    def view(self: Root, request: Any) -> str:
        session = request.app.session()
        seen = session.query(User).count()
        runs('view')
        if runs.count('view') <= 2:
            read_both.wait(30)
        session.add(User(name=f'{request.params["name"]} after {seen}'))
        return str(seen)

    client = client_of(
        on_servers, tenant, view, engine_options={'isolation_level': 'SERIALIZABLE'}
    )
    client.get('/')
    answers: list[str] = []

    def post(name: str) -> None:
        answers.append(Client(client.app).post('/', {'name': name}).text)

    threads = [threading.Thread(target=post, args=(name,)) for name in 'ab']
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(answers) == ['0', '1']
    assert runs.count('view') == 3
    assert sorted(name.split()[-1] for name in client.get('/').text.split(',')) == ['0', '1']


def test_deadlock_is_tried_again(on_servers: Applications, tenant: str, runs: Runs) -> None:
    """The victim of a deadlock runs again."""
    both_hold_one = threading.Barrier(2)

    def view(self: Root, request: Any) -> str:
        session = request.app.session()
        order = request.params['order']
        for number, name in enumerate(order):
            session.query(User).filter_by(name=name).update({'id': User.id + 10})
            runs('update')
            if number == 0 and runs.count('update') <= 2:
                both_hold_one.wait(30)
        return order

    options = {'connect_args': {'options': '-c deadlock_timeout=20ms'}}
    client = client_of(on_servers, tenant, view, engine_options=options)
    change(client.app.app, tenant, User(id=1, name='a'), User(id=2, name='b'))
    answers: list[str] = []

    def post(order: str) -> None:
        answers.append(Client(client.app).post('/', {'order': order}).text)

    threads = [threading.Thread(target=post, args=(order,)) for order in ('ab', 'ba')]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(answers) == ['ab', 'ba']
    ids = value(
        client.app.app,
        tenant,
        lambda app: sorted(row.id for row in app.session().query(User.id)),
    )
    assert ids == [21, 22]


def test_busy_sqlite_is_tried_again(embedded: Applications, tenant: str, runs: Runs) -> None:
    """A SQLite transaction whose view is older than another's commit runs again."""

    def view(self: Root, request: Any) -> str:
        runs('view')
        session = request.app.session()
        seen = session.query(User).count()
        if runs.count('view') == 1:
            change(client.app.app, tenant, User(name='other'))
        session.add(User(name=f'after {seen}'))
        session.flush()
        return str(seen)

    client = client_of(embedded, tenant, view)
    assert client.post('/').text == '1'
    assert client.get('/').text == 'after 1,other'
    assert runs.count('view') == 2


def test_error_view_does_not_hide_conflicts(
    applications: Applications, tenant: str, runs: Runs
) -> None:
    """A view for Exception runs after the last attempt, so it hides no conflict before that."""

    class Hiding(App):
        pass

    @Hiding.view(model=Root, request_method='POST')
    def view(self: Root, request: Any) -> str:
        runs('view')
        if runs.count('view') < 3:
            raise OperationalError('', {}, RetryableConflict('again')) from RetryableConflict()
        return 'done'

    @Hiding.view(model=Exception)
    def hide(self: Exception, request: Any) -> str:
        return 'hidden'

    app = applications.start(Hiding)
    client = Client(OrmCacheMiddleware(app, schema=tenant))
    assert client.post('/').text == 'done'


def test_several_commits_in_one_request(applications: Applications, tenant: str) -> None:
    """A view may commit by itself; its later reads see that commit, and its later changes are
    committed or rolled back with the request."""

    def view(self: Root, request: Any) -> str:
        session = request.app.session()
        before = len(request.app.names)
        session.add(User(name='a'))
        session.commit()
        after = len(request.app.names)
        session.add(User(name='b'))
        response = request.ResponseClass(f'{before} {after} {len(request.app.names)}')
        response.status_code = int(request.params['status'])
        return response  # type: ignore[no-any-return]

    client = client_of(applications, tenant, view)
    assert client.post('/', {'status': 409}, status=409).text == '0 1 2'
    assert client.get('/').text == 'a'


def test_served_without_the_middleware(applications: Applications, tenant: str) -> None:
    """Without the middleware the tween leaves requests alone, and properties say what is
    missing."""
    from onegov_ormcache.errors import OutsideScopeError

    app = applications.start(App)
    with pytest.raises(OutsideScopeError, match='request_scope'):
        Client(app).get('/')


def test_groups_of_other_requests_are_untouched(applications: Applications, tenant: str) -> None:
    """A request that changes nothing commits nothing and evicts nothing."""

    def view(self: Root, request: Any) -> str:
        return str(request.app.session().query(Group).count())

    client = client_of(applications, tenant, view)
    client.get('/')
    with client.app.app.recording() as events:
        client.post('/')
        client.get('/')
    assert [event.kind for event in events] == ['read']
    assert events[0].tier in ('process', 'shared')


def test_commit_within_a_scope_of_another_cache(
    applications: Applications, tenant: str, tmp_path: Path
) -> None:
    """The request's own scope is committed, also if a tween opens one of another cache."""

    class Nested(OrmCacheApp):
        pass

    Nested.path(path='')(Root)

    @Nested.json(model=Root)
    def add(self: Root, request: Any) -> int:
        session = request.app.session()
        count = int(session.query(User).count()) + 1
        session.add(User(name=f'number {count}'))
        return count

    @Nested.tween_factory(over=transaction_tween_factory)
    def beside_another(app: Nested, handler: Any) -> Any:
        def tween(request: Any) -> Any:
            with other.scope('main'):
                return handler(request)

        return tween

    with OrmCache(base=Base, dsn=f'sqlite:///{tmp_path}/other') as other:
        client = Client(OrmCacheMiddleware(applications.start(Nested), schema=tenant))
        assert [client.get('/').json for _ in range(3)] == [1, 2, 3]


def test_waits_at_random_before_each_new_attempt(
    applications: Applications, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each new attempt the tween waits: for a random part of a time that doubles, up to a
    bound, and that begins anew with each request."""
    bounds: list[float] = []
    waits: list[float] = []

    def uniform(low: float, high: float) -> float:
        assert low == 0
        bounds.append(high)
        return high / 3

    monkeypatch.setattr('random.uniform', uniform)
    monkeypatch.setattr(tween, 'sleep', waits.append)

    def view(self: Root, request: Any) -> str:
        raise RetryableConflict('again')

    client = client_of(applications, tenant, view, attempts=8)
    for _ in range(2):
        client.post('/', status=503)
    expected = [0.02, 0.04, 0.08, 0.16, 0.32, 0.5, 0.5]
    assert bounds == expected * 2
    assert waits == [bound / 3 for bound in bounds]


def test_a_refused_commit(on_servers: Applications, own_redis: RedisServer, tenant: str) -> None:
    """A commit that is refused, because Redis can't be reached, answers 503."""

    def view(self: Root, request: Any) -> str:
        request.app.session().add(User(name=request.params['name']))
        return ''

    client = client_of(on_servers, tenant, view, redis_url=own_redis.url, on_outage='refuse')
    client.post('/', {'name': 'a'})
    own_redis.kill()
    assert client.post('/', {'name': 'b'}, status=503).headers['Retry-After'] == '1'
    assert client.get('/').text == 'a'


def test_a_view_for_what_is_not_available(applications: Applications, tenant: str) -> None:
    """The application may answer itself, and sees why."""

    class Own(App):
        pass

    @Own.view(model=Root, request_method='POST')
    def change(self: Root, request: Any) -> str:
        raise RetryableConflict('again')

    @Own.view(model=HTTPServiceUnavailable)
    def busy(self: HTTPServiceUnavailable, request: Any) -> str:
        @request.after
        def after(response: Any) -> None:
            response.status_code = 503

        return f'try later: {self.__cause__}'

    app = applications.start(Own, attempts=1)
    client = Client(OrmCacheMiddleware(app, schema=tenant))
    assert client.post('/', status=503).text == 'try later: again'
