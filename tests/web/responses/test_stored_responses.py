"""Cached views: what is stored of a response, and when it is made anew."""

from __future__ import annotations

import re
import threading
from typing import Any

import pytest
from sqlalchemy import text
from webob import Response
from webob.exc import HTTPForbidden, HTTPFound, HTTPNotFound, HTTPTemporaryRedirect
from webtest import TestApp as Client

from onegov_ormcache import OrmCacheMiddleware, cached
from tests.support.applications import Applications, change
from tests.support.counting import Runs
from tests.support.models import Group, User
from tests.web.responses.site import App, Named, Root, Site, names_of, show_names


def test_a_response_is_stored_and_gone_after_a_change(
    applications: Applications, tenant: str
) -> None:
    """A page is made once, and anew after a commit that changes what it has read."""
    site = Site(applications, tenant, show_names)
    site.add('a')
    assert [site.get().text for _ in range(3)] == ['a'] * 3
    assert site.view_runs == 1
    site.add('b')
    assert [site.get().text for _ in range(2)] == ['a,b'] * 2
    assert site.view_runs == 2
    change(site.app, tenant, Group(name='g'))
    assert site.get().text == 'a,b'
    assert site.view_runs == 2


def test_reads_of_database_and_routing_count(applications: Applications, tenant: str) -> None:
    """The response depends on what the routing has read, and on the session's statements."""
    runs = Runs()

    class Own(App):
        pass

    @Own.view(model=Named, cached=True)
    def view(self: Named, request: Any) -> str:
        runs('view')
        return self.user.name

    app = applications.start(Own)
    client = Client(OrmCacheMiddleware(app, schema=tenant))
    client.get('/named/a', status=404)
    change(app, tenant, User(name='a'))
    assert [client.get('/named/a').text for _ in range(3)] == ['a'] * 3
    assert runs.count('view') == 1
    with app.request_scope(tenant) as scope:
        scope.session().execute(text("DELETE FROM users WHERE name = 'a'"))
        scope.session().commit()
    client.get('/named/a', status=404)


def test_one_command_and_nothing_else(
    applications: Applications, tenant: str, redis_ops: Any, db_queries: Any, sql_statements: Any
) -> None:
    """A cached page, and a 304, are one Redis command, no SQL, no connection and no view."""
    site = Site(applications, tenant, show_names)
    site.add('a')
    tag = site.get().headers['ETag']
    site.get()
    for headers, status in (({}, 200), ({'If_None_Match': tag}, 304)):
        with redis_ops(1), db_queries(0):
            found = site.get(status=status, **headers)
        assert found.headers['ETag'] == tag
    assert site.view_runs == 1


def test_other_processes_find_it(on_servers: Applications, tenant: str) -> None:
    """Another process serves the page that this one has made, with the same ETag."""
    site = Site(on_servers, tenant, show_names)
    site.add('a')
    here = site.get()
    _, there = site.process()
    for _ in range(2):
        found = there.get('/')
        assert (found.text, found.headers['ETag']) == ('a', here.headers['ETag'])
    assert site.view_runs == 1
    site.add('b')
    assert there.get('/').text == 'a,b'
    assert site.get().text == 'a,b'
    assert site.view_runs == 2


@pytest.mark.parametrize(
    ('change_response', 'reason'),
    [
        (lambda r: r.set_cookie('a', 'b'), 'cookie'),
        (lambda r: r.headers.add('Cache-Control', 'max-age=1, No-Store'), 'no-store'),
        (lambda r: r.headers.add('Vary', 'X-A'), 'Vary: X-A'),
        (lambda r: r.headers.add('Vary', '*'), r'Vary: \*'),
        (lambda r: setattr(r, 'status', 203), '203'),
        (lambda r: setattr(r, 'status', 500), '500'),
        (lambda r: setattr(r, 'status', 404), '404'),
        (lambda r: setattr(r, 'conditional_response', True), 'conditional'),
        (lambda r: setattr(r, 'body', b'x' * 101), '101 bytes'),
        (lambda r: setattr(r, 'app_iter', iter([b'x'])), 'streamed'),
    ],
)
def test_not_stored(
    applications: Applications, tenant: str, change_response: Any, reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """A response that must not be stored is served as the view has made it, and logged once."""

    def view(self: Root, request: Any) -> Response:
        response = Response(names_of(request), content_type='text/plain')
        change_response(response)
        return response

    site = Site(applications, tenant, view, cached(max_size=100))
    before = 0
    for _ in range(3):
        found = site.get(status='*')
        assert 'ETag' not in found.headers
        assert site.view_runs > before
        before = site.view_runs
    messages = [r.message for r in caplog.records if 'is not stored' in r.message]
    assert len(messages) == 1
    assert re.search(reason, messages[0])


def test_errors_are_not_stored(applications: Applications, tenant: str) -> None:
    """An error that a view raises is the error of an uncached application."""
    errors = iter([HTTPForbidden(), HTTPNotFound(), ZeroDivisionError(), ZeroDivisionError()])

    def view(self: Root, request: Any) -> str:
        names_of(request)
        for error in errors:
            raise error
        return 'well'

    site = Site(applications, tenant, view)
    site.get(status=403)
    site.get(status=404)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            site.get()
    assert [site.get().text for _ in range(2)] == ['well'] * 2
    assert site.view_runs == 5


@pytest.mark.parametrize('way', ['raise', 'return', 'response'])
def test_redirects_and_404(applications: Applications, tenant: str, way: str) -> None:
    """Where they are asked for, redirects and 404 are stored, and sent as they were first."""
    found = {'404': HTTPNotFound, '302': HTTPFound, '307': HTTPTemporaryRedirect}

    def view(self: Root, request: Any) -> Any:
        names_of(request)
        status = request.GET['status']
        made: Any = found[status](detail='of <it>')
        if status != '404':
            made.location = '/x'
        if way == 'response':
            made = Response('of it', status=status, headers={'Location': '/x'})
        if way == 'raise':
            raise made
        return made

    site = Site(applications, tenant, view, cached(statuses=(200, 302, 404)))
    for status in found:
        answers = [
            site.get(f'/?status={status}', status=int(status), Accept=accept)
            for accept in ('text/html', 'text/html', 'text/plain')
        ]
        assert answers[0].body == answers[1].body
        for each in answers:
            assert 'of' in each.text
            assert status == '404' or each.headers['Location'] == 'http://localhost/x'
        assert (answers[2].body != answers[1].body) == (way != 'response')
    assert site.view_runs == 2 + 3


def test_what_a_view_writes_is_kept(applications: Applications, tenant: str) -> None:
    """A view that writes is not stored, whether it returns or raises its response."""

    def view(self: Root, request: Any) -> str:
        request.app.session().add(User(name=f'u{len(request.app.names)}'))
        if 'raise' in request.GET:
            raise HTTPFound(location='/x')
        return names_of(request)

    site = Site(applications, tenant, view)
    assert site.get().text == 'u0'
    site.get('/?raise', status=302)
    assert site.get().text == 'u0,u1,u2'


def test_switched_off(applications: Applications, tenant: str) -> None:
    """The setting, or a function of the request, switches cached responses off."""
    for setting, runs in ((False, 3), (lambda request: 'off' not in request.GET, 1)):
        site = Site(applications, tenant, show_names, settings={'cached_responses': setting})
        for _ in range(3):
            site.get()
        assert site.view_runs == runs
        site.get('/?off')
        site.get('/?off')
        assert site.view_runs == runs + 2
        site.app.close_orm_cache()


def test_a_herd_runs_the_view_once(applications: Applications, tenant: str) -> None:
    """Eight threads that ask for one page run its view once."""
    barrier = threading.Barrier(8)
    started = threading.Event()

    def view(self: Root, request: Any) -> str:
        started.wait(0.2)
        return names_of(request)

    site = Site(applications, tenant, view)
    site.add('a')
    found: list[str] = []

    def ask() -> None:
        client = Client(site.client.app)
        barrier.wait()
        found.append(client.get('/').text)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ['a'] * 8
    assert site.view_runs == 1


def test_shared_response_objects(applications: Applications, tenant: str) -> None:
    """A view that returns one object for all requests does not change it."""
    shared = Response('one', content_type='text/plain')

    def view(self: Root, request: Any) -> Response:
        names_of(request)
        return shared

    site = Site(applications, tenant, view)
    before = list(shared.headerlist)
    for _ in range(2):
        assert site.get().text == 'one'
    assert shared.headerlist == before
    assert site.view_runs == 1


def test_expiry(applications: Applications, tenant: str) -> None:
    """A response ends by itself, where a function of it says so."""
    from datetime import UTC, datetime

    site = Site(
        applications, tenant, show_names, cached(expires=lambda response: datetime.now(UTC))
    )
    site.get()
    site.get()
    assert site.view_runs == 2


def test_damaged_response(on_servers: Applications, tenant: str) -> None:
    """A stored response of which a byte was changed is made anew."""
    import redis

    site = Site(on_servers, tenant, lambda self, request: 'abcdefgh' + names_of(request))
    site.get()
    client = redis.Redis.from_url(on_servers.backend.settings['redis_url'])
    damaged = 0
    for key in client.scan_iter('*'):
        if client.type(key) == b'string' and (data := client.get(key)) and b'abcdefgh' in data:
            client.set(key, data.replace(b'abcdefgh', b'abcdXfgh'))
            damaged += 1
    assert damaged
    _, there = site.process()
    assert there.get('/').text == 'abcdefgh'
    assert site.view_runs == 2


def test_streams_see_their_session(applications: Applications, tenant: str) -> None:
    """A streamed body reads the database while it is sent, as in an uncached application."""

    def view(self: Root, request: Any) -> Response:
        session = request.app.session()

        def body() -> Any:
            yield str(session.query(User).count()).encode()

        return Response(app_iter=body(), content_type='text/plain')

    site = Site(applications, tenant, view)
    site.add('a')
    assert [site.get().text for _ in range(3)] == ['1'] * 3
    assert site.view_runs == 4  # once to see that it streams


def test_the_body_of_a_get(applications: Applications, tenant: str) -> None:
    """A body that the routing and the view have read is there for the page that is not stored."""

    def view(self: Root, request: Any) -> Response:
        body = names_of(request).encode() + request.body_file.read()
        return Response(app_iter=iter([body]), content_type='text/plain')

    site = Site(applications, tenant, view)
    for _ in range(3):
        assert site.client.request('/', method='GET', body=b'abc').text == 'abc'
