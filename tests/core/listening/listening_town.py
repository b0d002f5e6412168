"""An application that listens to changes from outside, and ways to wait for what it hears."""

from __future__ import annotations

from typing import Any

import psycopg

from onegov_ormcache import OrmCacheApp, orm_cached
from onegov_ormcache.core.listening import LOCK, OutsideChanges
from tests.support.applications import value
from tests.support.counting import Runs
from tests.support.models import Document, Group, User
from tests.support.outside import until

#: Seconds within which a change from outside is evicted while somebody listens.
PROMISED = 1.0

#: Seconds after which another listener must have taken over, or the same one again.
TAKEN_OVER = 5.0

Program = psycopg.Connection[Any]


class Town(OrmCacheApp):
    """A property by table, two more, and one by a function."""

    runs = Runs()

    @orm_cached(policy='on-table-change:users')
    def names(self) -> list[str]:
        self.runs('names')
        return [name for (name,) in self.session().query(User.name).order_by(User.id)]

    @orm_cached(policy=Group)
    def groups(self) -> int:
        self.runs('groups')
        return self.session().query(Group).count()

    @orm_cached(policy=Document)
    def titles(self) -> list[str]:
        return [title for (title,) in self.session().query(Document.title)]

    @orm_cached(policy=lambda obj: isinstance(obj, User))
    def count(self) -> int:
        return self.session().query(User).count()


def ear_of(app: Town) -> OutsideChanges:
    outside_changes = app.orm_cache.outside
    assert outside_changes is not None
    return outside_changes


def listening(app: Town) -> Town:
    until(lambda: ear_of(app).is_active, TAKEN_OVER)
    return app


def reads(app: Town, schema: str, name: str) -> Any:
    return value(app, schema, lambda app: getattr(app, name))


def becomes(
    app: Town, schema: str, name: str, expected: object, seconds: float = PROMISED
) -> float:
    return until(lambda: reads(app, schema, name) == expected, seconds)


def active_listeners(program: Program, namespace: str) -> list[int]:
    """The processes of the server that hold the lock of the active listener."""
    query = """
        SELECT pid FROM pg_locks JOIN pg_database d ON d.oid = database
        WHERE locktype = 'advisory' AND granted AND datname = current_database()
        AND classid = %s AND objid = hashtext(%s)::bit(32)::bigint
    """
    return [pid for (pid,) in program.execute(query, (LOCK, namespace)).fetchall()]
