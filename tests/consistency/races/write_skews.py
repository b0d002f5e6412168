"""Two SERIALIZABLE transactions each read what the other one changes."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy.exc import OperationalError

from onegov_ormcache import RetryableConflict
from tests.support.applications import value
from tests.support.models import Document, User

from .world import World, differs


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
