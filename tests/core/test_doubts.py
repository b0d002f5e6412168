"""The doubt of a commit is sent while its flush goes on, and nobody waits for the new versions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from contextvars import Context
from typing import Any

import pytest
from sqlalchemy import event, insert, select, text, update
from sqlalchemy.orm import Session

from onegov_ormcache import OrmCacheApp, orm_cached, steps
from onegov_ormcache.core.scope import RequestScope
from onegov_ormcache.errors import SnapshotConflict, StoreUnreachable
from onegov_ormcache.steps import Step
from tests.support.applications import Applications, change, committed, value
from tests.support.counting import RedisCommands, Runs
from tests.support.models import Document, Group, User
from tests.support.outside import until
from tests.support.servers import RedisServer


class App(OrmCacheApp):
    runs = Runs()

    @orm_cached(policy=User)
    def names(self) -> list[str]:
        self.runs('names')
        return list(self.session().scalars(select(User.name).order_by(User.name)))

    @orm_cached(policy=Group)
    def groups(self) -> list[str]:
        return list(self.session().scalars(select(Group.name).order_by(Group.name)))


    @orm_cached(policy=User)
    def counted(self) -> int:
        return len(list(self.session().scalars(select(User.name))))

    @orm_cached(policy=Document)
    def titles(self) -> list[str]:
        return list(self.session().scalars(select(Document.title)))


class AppWithFunction(App):
    @orm_cached(policy=lambda session_manager, schema, obj: isinstance(obj, User))
    def by_function(self) -> int:
        return len(self.names)


def names(app: App) -> list[str]:
    return app.names


def titles(app: App) -> list[str]:
    return app.titles


def doubts_of(app: App, tenant: str) -> object:
    return app.orm_cache.snapshot(tenant).doubts


@pytest.fixture
def app(on_servers: Applications, tenant: str) -> App:
    """An application that knows its tenant, which has one user."""
    App.runs = Runs()
    app: App = on_servers.start(App)
    change(app, tenant, User(name='Ada'))
    assert value(app, tenant, names) == ['Ada']
    return app


@contextmanager
def noted(session: Session) -> Iterator[list[str]]:
    """The steps of the write path, and the ends of flushes, in their order."""
    seen: list[str] = []

    def note(step: Step) -> None:
        if step in (Step.DOUBT, Step.ANSWER, Step.COMMIT, Step.PUBLISH, Step.END_DOUBT):
            seen.append(step.value)

    event.listen(session, 'after_flush_postexec', lambda session, context: seen.append('flushed'))
    steps.listener = note
    try:
        yield seen
    finally:
        steps.listener = None


# when it is sent

ENDING = ['answer', 'commit', 'publish']


@pytest.mark.parametrize(
    ('objects', 'expected'),
    [
        (lambda: [User(name='Bob')], ['doubt', 'flushed']),
        (lambda: [User(name=f'u{number}') for number in range(100)], ['doubt', 'flushed']),
        (lambda: [User(name='Bob'), Group(name='b')], ['doubt', 'flushed']),
        (lambda: [User(name='Bob', groups=[Group(name='b')])], ['doubt', 'flushed']),
    ],
    ids=['one object', 'many objects', 'two tables', 'a relationship'],
)
def test_sent_before_the_flush_has_ended(
    app: App, tenant: str, objects: Callable[[], list[Any]], expected: list[str]
) -> None:
    """A commit sends its doubt once, while its flush goes on."""
    with app.request_scope(tenant) as scope, noted(scope.session()) as seen:
        scope.session().add_all(objects())
        scope.session().commit()
    assert seen == [*expected, *ENDING]


def test_sent_when_the_first_change_has_returned(app: App, tenant: str) -> None:
    """If one statement tells all changes, the doubt does not wait for the rest of the flush."""
    with app.request_scope(tenant) as scope, noted(scope.session()) as seen:
        event.listen(scope.session(), 'after_flush', lambda *_: seen.append('after_flush'))
        scope.session().add(User(name='Bob'))
        scope.session().commit()
    assert seen == ['doubt', 'after_flush', 'flushed', *ENDING]


def test_function_policies_are_asked_first(on_servers: Applications, tenant: str) -> None:
    """What a function policy tells at the end of the flush is part of the only doubt."""
    app: AppWithFunction = on_servers.start(AppWithFunction)
    change(app, tenant, User(name='Ada'))
    assert value(app, tenant, lambda app: app.by_function) == 1
    with app.request_scope(tenant) as scope, noted(scope.session()) as seen:
        scope.session().add(User(name='Bob'))
        scope.session().commit()
    assert seen == ['doubt', 'flushed', *ENDING]
    assert value(app, tenant, lambda app: app.by_function) == 2


def flushed_before(session: Session) -> None:
    session.add(User(name='Bob'))
    session.flush()


def savepoint_before(session: Session) -> None:
    with session.begin_nested():
        session.add(User(name='Bob'))


def executed(session: Session) -> None:
    session.execute(insert(User).values(name='Bob'))


@pytest.mark.parametrize('work', [flushed_before, savepoint_before, executed])
def test_a_transaction_that_takes_long(
    app: App, on_servers: Applications, tenant: str, work: Callable[[Session], None]
) -> None:
    """Until its commit, nobody is sent to the database: the doubt comes with the commit."""
    other = on_servers.elsewhere(app)
    assert value(other, tenant, names) == ['Ada']
    App.runs = Runs()
    with app.request_scope(tenant) as scope, noted(scope.session()) as seen:
        work(scope.session())
        assert 'doubt' not in seen
        assert value(other, tenant, names) == ['Ada']
        assert App.runs.total == 0
        scope.session().commit()
        assert seen[-4:] == ['doubt', *ENDING]
    assert value(other, tenant, names) == ['Ada', 'Bob']


def test_nothing_is_sent_before_something_has_changed(app: App, tenant: str) -> None:
    """A commit whose statements change no row sends nothing."""
    with app.request_scope(tenant) as scope, noted(scope.session()) as seen:
        scope.session().execute(update(User).where(User.name == 'nobody').values(name='x'))
        scope.session().commit()
    assert seen == ['commit']


# what comes after it


def test_a_change_after_the_doubt(app: App, on_servers: Applications, tenant: str) -> None:
    """What a listener changes after the flush is put in doubt by a second one, before COMMIT."""
    other = on_servers.elsewhere(app)
    assert value(other, tenant, lambda app: app.groups) == []

    def add_group(session: Session, context: object) -> None:
        session.execute(insert(Group).values(name='a'))

    with committed(app, tenant) as scope, noted(scope.session()) as seen:
        event.listen(scope.session(), 'after_flush_postexec', add_group, once=True)
        scope.session().add(User(name='Bob'))
        scope.session().commit()
    assert seen == ['doubt', 'flushed', 'doubt', *ENDING]
    assert value(other, tenant, lambda app: app.groups) == ['a']
    assert value(other, tenant, names) == ['Ada', 'Bob']


def test_a_second_flush_in_a_commit(app: App, on_servers: Applications, tenant: str) -> None:
    """What a listener adds to the session is flushed in the same commit, and evicts, too."""
    other = on_servers.elsewhere(app)
    assert value(other, tenant, lambda app: app.groups) == []

    def add_group(session: Session, context: object) -> None:
        session.add(Group(name='a'))

    with committed(app, tenant) as scope:
        event.listen(scope.session(), 'after_flush_postexec', add_group, once=True)
        scope.session().add(User(name='Bob'))
    assert value(other, tenant, lambda app: app.groups) == ['a']
    assert value(other, tenant, names) == ['Ada', 'Bob']


def refuse(*arguments: object) -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize('when', ['after_flush', 'after_flush_postexec', 'commit of the engine'])
def test_rolled_back_after_the_doubt(app: App, tenant: str, when: str) -> None:
    """If the commit fails after the doubt was sent, the doubt ends, and values stay valid."""
    App.runs = Runs()
    engine = app.session_manager.database.engine(tenant)
    with app.request_scope(tenant) as scope:
        target, name = (engine, 'commit') if when.startswith('commit') else (scope.session(), when)
        event.listen(target, name, refuse)
        scope.session().add(User(name='Bob'))
        try:
            with pytest.raises(ZeroDivisionError):
                scope.session().commit()
        finally:
            event.remove(target, name, refuse)
        scope.session().rollback()
    assert not doubts_of(app, tenant)
    assert value(app, tenant, names) == ['Ada']
    assert App.runs.total == 0


def test_a_conflict_is_one_of_the_commit(on_servers: Applications, tenant: str) -> None:
    """SERIALIZABLE: what was read through the cache, and changed by another since, is noticed at
    COMMIT, also if it was read after the doubt was sent; and nothing of the doubt is left."""
    level = {'isolation_level': 'SERIALIZABLE'}
    app: App = on_servers.start(App, engine_options=level)
    change(app, tenant, User(name='Ada'), Group(name='a'))
    assert value(app, tenant, lambda app: (app.names, app.groups)) == (['Ada'], ['a'])
    other = on_servers.elsewhere(app)

    def read_and_change(session: Session, context: object) -> None:
        assert app.groups == ['a']
        change_elsewhere()

    def change_elsewhere() -> None:
        Context().run(change, other, tenant, Group(name='b'))

    for read_first in (True, False):
        with app.request_scope(tenant) as scope:
            if read_first:
                assert app.groups
                change_elsewhere()
            else:
                event.listen(scope.session(), 'after_flush_postexec', read_and_change, once=True)
            scope.session().add(User(name='Bob'))
            with pytest.raises(SnapshotConflict):
                scope.session().commit()
            scope.session().rollback()
        assert not doubts_of(app, tenant)
        with committed(other, tenant) as scope:
            scope.session().query(Group).filter_by(name='b').delete()
        assert value(app, tenant, lambda app: app.groups) == ['a']


def test_a_read_beside_the_own_doubt(app: App, tenant: str) -> None:
    """A listener that reads what is in the own doubt neither settles it nor takes it for another's
    change."""
    found = []
    with app.request_scope(tenant) as scope:
        scope.torn_pages.are_refused = True  # as the tween does
        assert app.names == ['Ada']

        def read(session: Session, context: object) -> None:
            scope.session_ended()
            found.append(app.counted)

        event.listen(scope.session(), 'after_flush_postexec', read)
        scope.session().add(User(name='Bob'))
        scope.session().commit()
    assert found == [2]
    assert value(app, tenant, names) == ['Ada', 'Bob']


def test_definitions_that_change_after_the_doubt(
    app: App, on_servers: Applications, tenant: str
) -> None:
    """What a statement meets after the doubt was sent is checked as if it had come before."""
    other = on_servers.elsewhere(app)
    assert value(other, tenant, titles) == value(app, tenant, titles) == []
    trigger = (
        ('CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN '
        "INSERT INTO documents (kind, title, state) VALUES ('document', new.name, 'DRAFT'); "
        'RETURN new; END $$'),
        'CREATE TRIGGER note AFTER INSERT ON groups FOR EACH ROW EXECUTE FUNCTION note()',
    )

    def redefine() -> None:
        with committed(other, tenant) as scope:
            for command in trigger:
                scope.session().execute(text(command))
        for _ in range(3):
            assert value(other, tenant, titles) == []

    def insert_group(session: Session, context: object) -> None:
        Context().run(redefine)
        session.execute(insert(Group).values(name='noted'))

    with committed(app, tenant) as scope:
        app.mark_changed(Group)
        event.listen(scope.session(), 'after_flush_postexec', insert_group, once=True)
        scope.session().add(User(name='Bob'))
    assert value(app, tenant, titles) == value(other, tenant, titles) == ['noted']


# what is waited for


@pytest.mark.parametrize('number', [1, 100])
def test_commands_of_a_commit(
    app: App, tenant: str, redis_commands: Callable[[], RedisCommands], number: int
) -> None:
    """A commit sends two commands, however many tables its flush changes."""
    with app.request_scope(tenant) as scope:
        for _ in range(number):
            scope.session().add(Document(title='a'))
        scope.session().add_all([User(name='Bob'), Group(name='b')])
        scope.session().connection()
        with redis_commands() as redis:
            scope.session().commit()
    assert redis.count == 2


def test_nobody_waits_after_the_doubt(
    on_servers: Applications, own_redis: RedisServer, tenant: str
) -> None:
    """If the doubt was answered while the flush went on, a store that does nothing any more does
    not hold the commit up."""
    app: App = on_servers.start(App, redis_url=own_redis.url)
    change(app, tenant, User(name='Ada'))
    assert value(app, tenant, names) == ['Ada']
    scope: RequestScope

    def pause(session: Session, context: object) -> None:
        with closing(own_redis.client()) as client:
            key = client.keys('*:tags:*')[0]
            until(lambda: any(field.startswith(b'd:') for field in client.hkeys(key)), 30)
            client.ping()  # its answer was sent before this one
        own_redis.pause()

    with app.request_scope(tenant) as scope:
        event.listen(scope.session(), 'after_flush_postexec', pause, once=True)
        scope.session().add(User(name='Bob'))
        scope.session().commit()
        own_redis.resume()
    assert value(app, tenant, names) == ['Ada', 'Bob']


@pytest.mark.parametrize('elsewhere', [False, True])
def test_the_next_request_after_a_commit(
    app: App, on_servers: Applications, tenant: str, elsewhere: bool
) -> None:
    """It finds the new versions, although nobody waited for them: what it computes is stored."""
    reader = on_servers.elsewhere(app) if elsewhere else app
    for number in range(20):
        change(app, tenant, User(name=f'u{number}'))
        App.runs = Runs()
        for _ in range(2):
            assert len(value(reader, tenant, names)) == number + 2
        if not elsewhere:
            assert App.runs.total == 1


def test_a_store_that_stalls_in_a_commit(
    on_servers: Applications, own_redis: RedisServer, tenant: str
) -> None:
    """A commit that is refused, because the doubt is not answered, waits for it once."""
    app: App = on_servers.start(
        App, redis_url=own_redis.url, redis_timeout=0.3, on_outage='refuse'
    )
    change(app, tenant, User(name='Ada'))
    with app.request_scope(tenant) as scope, noted(scope.session()) as seen:
        scope.session().connection()
        event.listen(scope.session(), 'before_flush', lambda *_: own_redis.pause(), once=True)
        scope.session().add(User(name='Bob'))
        with pytest.raises(StoreUnreachable):
            scope.session().commit()
        scope.session().rollback()
    own_redis.resume()
    assert seen == ['doubt', 'flushed', 'answer']
    # the doubt was put when the server went on, and is settled by those who read
    until(lambda: value(app, tenant, names) == ['Ada'] and not doubts_of(app, tenant), 30)
