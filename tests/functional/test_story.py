"""The story of a request: what the log says at DEBUG, step by step."""

from __future__ import annotations

import logging
import re
from typing import Any

import morepath
import pytest
from webtest import TestApp

from onegov_ormcache import OrmCacheApp, OrmCacheMiddleware, orm_cached
from tests.support.applications import Applications
from tests.support.models import Group, User

LOGGER = 'onegov_ormcache.core.story'


class App(OrmCacheApp):
    """An application with two properties and a view that changes what one of them depends on."""

    @orm_cached(policy=User)
    def names(self) -> list[str]:
        return [name for (name,) in self.session().query(User.name).order_by(User.name)]

    @orm_cached(policy=Group)
    def groups(self) -> int:
        return self.session().query(Group).count()

    @orm_cached(policy='auto')
    def nothing(self) -> int:
        return 1


class Root:
    """What the paths lead to."""


@App.path(model=Root, path='')
def get_root() -> Root:
    return Root()


@App.json(model=Root)
def show(self: Root, request: Any) -> Any:
    app = request.app
    return {'names': app.names, 'again': app.names, 'groups': app.groups, 'nothing': app.nothing}


@App.json(model=Root, name='add', request_method='POST')
def add(self: Root, request: Any) -> Any:
    request.app.session().add(User(name='the secret'))
    return request.app.names


@App.html(model=Root, name='page', cached=True)
def page(self: Root, request: Any) -> str:
    return f'<p>{request.app.groups}</p>'


@App.json(model=Root, name='fail', request_method='POST')
def fail(self: Root, request: Any) -> Any:
    request.app.session().add(Group(name='b'))
    request.app.session().flush()
    return morepath.Response(status=500)


@pytest.fixture
def client(applications: Applications, tenant: str) -> TestApp:
    """A client of the application; its first requests were made."""
    client = TestApp(OrmCacheMiddleware(applications.start(App), schema=tenant))
    client.post('/add')
    return client


def story(caplog: pytest.LogCaptureFixture, tenant: str) -> list[str]:
    """Return the lines since the last call, without what differs each time."""
    lines = [record.getMessage() for record in caplog.records if record.name == LOGGER]
    caplog.clear()
    marks = {line.partition(']')[0] for line in lines}
    assert len(marks) == 1
    assert marks.pop().startswith(f'[{tenant} ')
    texts = [line.partition('] ')[2].replace(f'{__name__}.App.', '') for line in lines]
    texts = [re.sub(r'[\d.]+ ms', 'N ms', text) for text in texts]
    texts = [re.sub(r'[\d,]+ bytes', 'N bytes', text) for text in texts]
    return [re.sub(r'<Snapshot \S+ \d+ tags', '<Snapshot X', text) for text in texts]


def test_story_of_a_request(
    client: TestApp, tenant: str, caplog: pytest.LogCaptureFixture
) -> None:
    """At DEBUG, the log tells of the snapshot, and of each property whence it came, how long its
    creator took, and why its value was not stored. A hit of the request tier is no news."""
    caplog.set_level(logging.DEBUG, LOGGER)
    client.get('/')
    assert story(caplog, tenant) == [
        'new <Snapshot X>',
        'names: no tier has it; computing it for all',
        'names: computed in N ms',
        'names: stored; N bytes, table:users',
        'groups: no tier has it; computing it for all',
        'groups: computed in N ms',
        'groups: stored; N bytes, table:groups',
        'nothing: no tier has it; computing it for all',
        'nothing: computed in N ms',
        'nothing: not stored: it read no table; N bytes, no tags',
        'closed after N ms; hits: 0; misses: 3',
    ]
    client.get('/')
    assert story(caplog, tenant) == [
        'unchanged <Snapshot X>',
        'names: from the process tier',
        'groups: from the process tier',
        'nothing: computed in N ms',
        'nothing: not stored: it read no table; N bytes, no tags',
        'closed after N ms; hits: 2 process; misses: 1',
    ]


def test_story_of_a_change(
    client: TestApp, tenant: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It tells why the cache is passed by, which tags are put in doubt, what is committed, and
    what is rolled back. No value is told."""
    caplog.set_level(logging.DEBUG, LOGGER)
    with client.app.app.request_scope(tenant) as scope:
        scope.session().query(User).delete()
        scope.commit()
    caplog.clear()
    client.post('/add')
    text = caplog.text
    assert story(caplog, tenant) == [
        'unchanged <Snapshot X>' if 'unchanged' in text else 'new <Snapshot X>',
        'names: the cache is passed by: own change',
        'names: computed in N ms',
        'names: not stored: own change; N bytes, table:users',
        'table:users: put in doubt, answered after N ms',
        'committed: table:users',
        'table:users: new versions sent in N ms',
        'closed after N ms; hits: 0; misses: 1',
    ]
    assert 'the secret' not in text
    client.post('/fail', status=500)
    assert 'rolled back: table:groups' in story(caplog, tenant)


def test_story_of_a_page(
    client: TestApp, tenant: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Cached responses are told of like properties."""
    caplog.set_level(logging.DEBUG, LOGGER)
    client.get('/page')
    lines = story(caplog, tenant)
    assert [line for line in lines if line.startswith('groups: stored')]
    page = f"view({__name__}.Root, name='page')"
    assert f'{page}: stored; N bytes, table:groups' in lines
    client.get('/page')
    assert story(caplog, tenant)[1:] == [
        f'{page}: from the process tier',
        'closed after N ms; hits: 1 process; misses: 0',
    ]


def test_nobody_listens(
    client: TestApp, tenant: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Without DEBUG there is no story, whatever else is logged."""
    caplog.set_level(logging.INFO)
    client.get('/')
    with client.app.app.request_scope(tenant) as scope:
        client.app.app.names
        assert scope.story is None
    assert not [record for record in caplog.records if record.name == LOGGER]
