"""Two SERIALIZABLE transactions each read what the other one changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy.exc import OperationalError

from onegov_ormcache import RetryableConflict
from onegov_ormcache.core.scope import RequestScope
from onegov_ormcache.steps import Step
from tests.consistency.interleaving import Died, before, die
from tests.support.applications import committed, value
from tests.support.models import Document, User
from tests.support.outside import outside

from .world import App, World, differs


def write_skew(world: World) -> Iterator[str]:
    """Two SERIALIZABLE writers each read through the cache what the other changes."""
    one, two = world.start('SERIALIZABLE')
    for app in one, two:
        value(app, world.tenant, lambda app: (app.names, app.titles))
    refused = 0
    with one.request_scope(world.tenant) as first:
        if not one.titles:
            first.session().add(User(name='no title was there'))
        with two.request_scope(world.tenant) as second:
            if two.names == ['old']:
                second.session().add(Document(kind='document', title='no other user was there'))
            for scope in first, second:
                scope.session().flush()
            for scope in first, second:
                with scope.active():
                    try:
                        scope.session().commit()
                    except RetryableConflict:
                        refused += 1
                        scope.session().rollback()
    yield from differs('refused', refused, 1)


def write_skew_through_a_creator(world: World) -> Iterator[str]:
    """The same, when one of the two reads what is not cached, so that its creator runs."""
    one, two = world.start('SERIALIZABLE')
    value(two, world.tenant, lambda app: app.names)
    refused = 0
    with one.request_scope(world.tenant) as first:
        if not one.titles:
            first.session().add(User(name='no title was there'))
        with two.request_scope(world.tenant) as second:
            if two.names == ['old']:
                second.session().add(Document(kind='document', title='no other user was there'))
            first.session().flush()
            second.session().flush()
            for scope in first, second:
                with scope.active():
                    try:
                        scope.session().commit()
                    except (RetryableConflict, OperationalError):
                        refused += 1
                        scope.session().rollback()
    yield from differs('refused', refused, 1)


def write_skew_in_a_quarantine(world: World) -> Iterator[str]:
    """Both read what is not cached, in a quarantine; each commits in it, or after its end."""
    one, two = world.start('SERIALIZABLE')
    for after_the_end in (), (1,), (0, 1):
        _renew_rows(world, one)
        with _quarantine(world) as end, one.request_scope(world.tenant) as first:
            assert one.titles == []
            first.session().add(User(name='no title was there'))
            first.session().flush()
            with two.request_scope(world.tenant) as second:
                assert two.names == ['old']
                second.session().add(Document(kind='document', title='no other user was there'))
                second.session().flush()
                refused = 0
                for number, scope in enumerate((first, second)):
                    if number in after_the_end:
                        end(one)
                    refused += _is_refused(scope)
        yield from differs(f'refused, after the end: {after_the_end}', refused, 1)


def write_skew_beside_the_end_of_a_quarantine(world: World) -> Iterator[str]:
    """One reads in the quarantine what is not cached, the other one after its end what is."""
    one, two = world.start('SERIALIZABLE')
    for order in (0, 1), (1, 0):
        _renew_rows(world, one)
        with _quarantine(world) as end, one.request_scope(world.tenant) as first:
            assert one.titles == []
            first.session().add(User(name='no title was there'))
            first.session().flush()
            end(two)
            for _ in range(2):
                world.names(two)
            with two.request_scope(world.tenant) as second:
                assert two.names == ['old']
                assert second.returned
                second.session().add(Document(kind='document', title='no other user was there'))
                second.session().flush()
                refused = sum(_is_refused((first, second)[number]) for number in order)
        yield from differs(f'refused, in the order {order}', refused, 1)


def write_skew_beside_a_lost_doubt(world: World) -> Iterator[str]:
    """One has read from the cache and is in doubt when the store forgets it. The other one reads
    in the quarantine. The first commits and dies, then the second commits."""
    one, two = world.start('SERIALIZABLE')
    for is_over in False, True:
        _renew_rows(world, one)
        for _ in range(2):
            world.names(one)
        tenant = world.tenant
        with two.request_scope(tenant) as second, one.request_scope(tenant) as first:
            assert one.names == ['old']
            assert first.returned
            first.session().add(Document(kind='document', title='no other user was there'))

            def forget_and_read(second: RequestScope = second) -> None:
                world.redis.client().flushall()
                with second.active():
                    assert two.titles == []
                    second.session().add(User(name='no title was there'))
                    second.session().flush()

            try:
                with before(Step.COMMIT, forget_and_read), before(Step.PUBLISH, die):
                    first.session().commit()
            except Died:
                pass
            if is_over:
                _end_quarantine(world, two)
            refused = _is_refused(second)
        yield from differs(f'refused, quarantine over: {is_over}', refused, True)


def _is_refused(scope: RequestScope) -> bool:
    """Commit; return whether that was refused."""
    with scope.active():
        try:
            scope.session().commit()
        except (RetryableConflict, OperationalError):
            scope.session().rollback()
            return True
    return False


@contextmanager
def _quarantine(world: World) -> Iterator[Callable[[App], None]]:
    """Begin a quarantine, which waits for a writer of another program; yield what ends it."""
    with outside(world.applications.backend.settings['dsn'], world.tenant) as connection:
        connection.execute('BEGIN')
        connection.execute('SELECT pg_current_xact_id()')
        world.redis.client().flushall()

        def end(app: App) -> None:
            connection.execute('COMMIT')
            _end_quarantine(world, app)

        yield end


def _end_quarantine(world: World, app: App) -> None:
    app.orm_cache.settler._asked.clear()
    with app.request_scope(world.tenant) as scope:
        scope.session().connection()
        assert scope.snapshot().quarantine is None


def _renew_rows(world: World, app: App) -> None:
    """Give the tenant one user, 'old', and no documents."""
    with committed(app, world.tenant) as scope:
        scope.session().query(User).delete()
        scope.session().query(Document).delete()
        scope.session().add(User(name='old'))
