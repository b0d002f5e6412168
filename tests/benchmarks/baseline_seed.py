"""The design of the module that this package re-implements, written anew to compare with.

Values and their timestamps are two keys in Redis; a process keeps values beside their
timestamps, and asks Redis for the timestamp per property and request. What a flush
changes is deleted there and then: for each object, each property and each key that this
process has used. Each read checks a session out with its connection; two SETs run before
every statement. Nothing of it is code of that module. Where its ways are not known, this
takes the cheaper: fills are locked within a process, and values are pickled.
"""

from __future__ import annotations

from time import time
from typing import Any

from dogpile.cache.api import NO_VALUE
from sqlalchemy import create_engine, event
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from .contestants import as_each_role, changed, read_tree, region_of
from .measuring import per_call
from .schema import CATEGORIES, items_of


class SeedProperty:
    """A cached property of the seed's kind."""

    def __init__(self, name: str, table: str, creator: Any, by_role: bool = False) -> None:
        self.name = name
        self.table = table
        self.creator = creator
        self.by_role = by_role
        self.used: set[str] = set()

    def __get__(self, app: Any, owner: type) -> Any:
        if app is None:
            return self
        session = app.session()
        if session.dirty:
            session.flush()
        key = self.name
        if self.by_role:
            key = f'{key}-{getattr(app.identity, "role", None)}'
        self.used.add(key)
        if key in app.request_values:
            return app.request_values[key]
        key_of_time = key + '_ts'
        when, value = app.process_values.get(key, (None, NO_VALUE))
        if value is NO_VALUE or when != app.cache.get(key_of_time):
            value = app.cache.get_or_create(key, lambda: self.creator(app))
            when = app.cache.get_or_create(key_of_time, time)
            app.process_values[key] = when, value
        app.request_values[key] = value
        return value


def item_creator(number: int) -> Any:
    def create(app: Any) -> Any:
        role = app.identity.role if app.identity else None
        rows = app.session().execute(items_of(number, role))
        return tuple(tuple(row) for row in rows)

    return create


class Seed:
    """The contestant: sessions, tiers and properties of one process."""

    name = 'seed design'
    base = 'no cache'

    def __init__(self, dsn: str, redis_url: str, schema: str) -> None:
        self.identity: Any = None
        self.schema = schema
        #: SQL that goes past SQLAlchemy's events, where the counters are.
        self.uncounted = 0
        self.cache = region_of(redis_url)
        self.cache.key_mangler = lambda key: f'seed:{schema}:{key}'
        self.request_values: dict[str, Any] = {}
        self.process_values: dict[str, Any] = {}
        self.engine = create_engine(dsn)
        self.sessions = scoped_session(sessionmaker(self.engine))
        event.listen(self.engine, 'before_cursor_execute', self._before_statement)
        event.listen(self.sessions, 'after_flush', self._after_flush)
        body: dict[str, Any] = {'pages': SeedProperty('pages', 'nodes', read_tree)}
        for number in range(CATEGORIES):
            create = item_creator(number)
            body[f'p{number}'] = SeedProperty(f'p{number}', 'items', create)
            body[f'r{number}'] = SeedProperty(f'r{number}', 'items', create, by_role=True)
        self.__class__ = type('SeedApp', (Seed,), body)
        self.properties = [one for one in body.values() if isinstance(one, SeedProperty)]

    def session(self) -> Session:
        """The thread's session, its connection checked out."""
        session = self.sessions()
        if not session.in_transaction():
            session.connection()
        return session

    def _before_statement(self, connection: Any, cursor: Any, *_: Any) -> None:
        cursor.execute(f'SET search_path TO "{self.schema}"')
        cursor.execute(f"SET benchmark.tenant TO '{self.schema}'")
        self.uncounted += 2

    def _after_flush(self, session: Session, context: object) -> None:
        for obj in (*session.new, *session.dirty, *session.deleted):
            table = obj.__tablename__
            for prop in self.properties:
                if prop.table == table:
                    self._evict(prop)

    def _evict(self, prop: SeedProperty) -> None:
        for key in prop.used:
            self.cache.delete(key)
            self.cache.delete(key + '_ts')
            self.process_values.pop(key, None)
            self.request_values.pop(key, None)

    def end_request(self) -> None:
        self.request_values.clear()
        self.sessions.remove()

    def read(self, names: list[str]) -> None:
        """One request."""
        for name in names:
            getattr(self, name)
        self.end_request()

    def requests(self, properties: int, repeat: int, roles: int = 0) -> float:
        names = [f'{"r" if roles else "p"}{number}' for number in range(properties)]
        return as_each_role(self, roles, lambda: per_call(lambda: self.read(names), repeat))

    def change(self, objects: int) -> float:
        seconds = changed(self.session(), objects)
        self.end_request()
        return seconds

    def tree(self, repeat: int) -> float:
        return per_call(lambda: self.read(['pages']), repeat)

    def forget(self) -> None:
        self.process_values.clear()

    def forget_used_keys(self) -> None:
        """As if the process had begun anew: it deletes the keys that it has used since."""
        for prop in self.properties:
            prop.used.clear()

    def close(self) -> None:
        self.sessions.remove()
        self.engine.dispose()


