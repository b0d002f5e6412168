"""The contestants: each does the same work on the same rows, in its own way.

Three of them are here: this package, a program without a cache, and dogpile.cache, used
as its documentation shows. The seed's design is in baseline_seed.py, the Django packages
are in peers.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from time import perf_counter
from typing import Any, Protocol

from dogpile.cache import CacheRegion, make_region
from sqlalchemy import create_engine, select, text
from sqlalchemy.orm import Session

from onegov_ormcache import OrmCacheApp, orm_cached

from . import schema as tables
from .measuring import per_call
from .schema import Base, Item, Node, items_of, tree_of

#: The policy of all properties.
POLICY = 'on-table-change:items'
CAN_FREEZE = 'frozen' in signature(orm_cached).parameters


class Contestant(Protocol):
    """The interface of all contestants, which the cases use."""

    #: Its name in tables and plots.
    name: str
    #: The name of the contestant without a cache that its times are compared with.
    base: str
    #: The number of SQL statements that it has sent and that the counters do not see.
    uncounted: int

    def requests(self, properties: int, repeat: int, roles: int = 0) -> float:
        """Return the mean seconds of a request that reads the properties, summed over roles."""

    def change(self, objects: int) -> float:
        """Seconds for flush and commit of so many changed objects."""

    def tree(self, repeat: int) -> float:
        """Seconds for one request that reads the large tree."""

    def forget(self) -> None:
        """Drop the values that the process keeps; those in Redis stay."""

    def close(self) -> None:
        """Give all connections back."""


@dataclass
class Identity:
    """The user that the requests come from."""

    role: int


class Cached(OrmCacheApp):
    """The application of this package, before it gets its properties."""

    identity: Any = None


def creator_of(number: int) -> Callable[[Any], Any]:
    def creator(app: Any) -> Any:
        identity = app.identity
        return items_of(number, identity.role if identity else None)

    creator.__name__ = f'p{number}'
    return creator


def read_tree(app: Any) -> dict[str, Any]:
    rows = app.session().execute(select(Node.id, Node.parent_id, Node.title).order_by(Node.id))
    return tree_of(rows)


def cached_app(properties: int, frozen: bool = False, **settings: Any) -> OrmCacheApp:
    """Return an application of this package with so many properties ``p0``, ``p1``..., as many
    that differ by role (``r0``...), and ``tree``."""
    extra: dict[str, Any] = {'frozen': True} if frozen else {}
    body: dict[str, Any] = {
        '__module__': __name__,
        '__qualname__': 'BenchmarkApp',
        'tree': orm_cached(policy='on-table-change:nodes', **extra)(read_tree),
    }
    for number in range(properties):
        body[f'p{number}'] = orm_cached(policy=POLICY)(creator_of(number))
        body[f'r{number}'] = orm_cached(policy=POLICY, by_role=True)(creator_of(number))
    metaclass: Any = type(Cached)
    app_class = metaclass('BenchmarkApp', (Cached,), body)
    chosen = {'base': Base, 'process_cache_size': 1 << 30, **settings}
    app_class.setting_section(section='orm_cache')(lambda: chosen)
    app: OrmCacheApp = app_class()
    app.setup_orm_cache()
    return app


class OrmCache:
    """This package."""

    uncounted = 0
    base = 'no cache'

    def __init__(self, dsn: str, redis_url: str, schema: str, frozen: bool = False) -> None:
        self.name = 'onegov_ormcache, frozen' if frozen else 'onegov_ormcache'
        self.schema = schema
        self.app: Any = cached_app(
            tables.CATEGORIES, frozen, dsn=dsn, redis_url=redis_url, namespace=schema
        )

    def requests(self, properties: int, repeat: int, roles: int = 0) -> float:
        app, schema = self.app, self.schema
        names = [f'{"r" if roles else "p"}{number}' for number in range(properties)]

        def request() -> None:
            with app.request_scope(schema):
                for name in names:
                    getattr(app, name)

        return as_each_role(app, roles, lambda: per_call(request, repeat))

    def change(self, objects: int) -> float:
        with self.app.request_scope(self.schema) as scope:
            return changed(scope.session(), objects)

    def tree(self, repeat: int) -> float:
        def request() -> None:
            with self.app.request_scope(self.schema):
                self.app.tree

        return per_call(request, repeat)

    def forget(self) -> None:
        tier = self.app.orm_cache.process_tier.of(f'{self.schema}|')
        for key in list(tier):
            del tier[key]

    def close(self) -> None:
        self.app.close_orm_cache()


def as_each_role(app: Any, roles: int, measure: Callable[[], float]) -> float:
    """Measure once as a user of each role, and return the sum; without roles, measure once
    without a user."""
    seconds = 0.0
    for role in range(roles):
        app.identity = Identity(role)
        seconds += measure()
    app.identity = None
    return seconds if roles else measure()


def changed(session: Session, objects: int) -> float:
    """Change so many objects; return the seconds for the flush and the commit alone."""
    for item in session.scalars(select(Item).order_by(Item.id).limit(objects)):
        item.value += 1
    start = perf_counter()
    session.commit()
    return perf_counter() - start


class Plain:
    """No cache: the same queries each time, in a schema per tenant like all others."""

    name = base = 'no cache'
    uncounted = 0

    def __init__(self, dsn: str, schema: str) -> None:
        self.schema = schema
        self.engine = create_engine(dsn)
        self.identity: Any = None
        self._session: Session | None = None

    @contextmanager
    def request(self) -> Iterator[Session]:
        """Open a session bound to the schema: without a cache every request needs one."""
        with Session(self.engine) as session:
            path = f'"{self.schema}"'
            session.execute(
                text("SELECT set_config('search_path', :path, true)"), {'path': path}
            )
            self._session = session
            yield session

    def session(self) -> Session:
        assert self._session is not None
        return self._session

    def value(self, session: Session, number: int) -> Any:
        """The value of a property."""
        return self.compute(session, number)

    def compute(self, session: Session, number: int) -> Any:
        role = self.identity.role if self.identity else None
        return tuple(session.execute(items_of(number, role)))

    def requests(self, properties: int, repeat: int, roles: int = 0) -> float:
        def request() -> None:
            with self.request() as session:
                for number in range(properties):
                    self.value(session, number)

        return as_each_role(self, roles, lambda: per_call(request, repeat))

    def change(self, objects: int) -> float:
        with self.request() as session:
            return changed(session, objects)

    def tree(self, repeat: int) -> float:
        def request() -> None:
            with self.request():
                read_tree(self)

        return per_call(request, repeat)

    def forget(self) -> None:
        """There is nothing to forget."""

    def close(self) -> None:
        self.engine.dispose()


class Dogpile(Plain):
    """dogpile.cache as it is: ``get_or_create`` per property, deleted after the commit.

    It is used at its best: a session is opened only if a creator needs one, locks hold over
    all processes, and one command deletes all keys. The contestant keeps a list of its keys.
    """

    name = 'dogpile.cache'

    def __init__(self, dsn: str, redis_url: str, schema: str) -> None:
        super().__init__(dsn, schema)
        self.region = region_of(redis_url, distributed_lock=True)
        self.keys: set[str] = set()

    def key(self, number: int) -> str:
        role = self.identity.role if self.identity else None
        return f'dogpile:{self.schema}:p{number}:{role}'

    def read(self, number: int) -> Any:
        """A property's value; a session is opened only to compute it."""
        key = self.key(number)
        self.keys.add(key)

        def create() -> Any:
            with self.request() as session:
                return [tuple(row) for row in self.compute(session, number)]

        return self.region.get_or_create(key, create)

    def requests(self, properties: int, repeat: int, roles: int = 0) -> float:
        def request() -> None:
            for number in range(properties):
                self.read(number)

        return as_each_role(self, roles, lambda: per_call(request, repeat))

    def change(self, objects: int) -> float:
        seconds = super().change(objects)
        start = perf_counter()
        self.region.delete_multi(list(self.keys))
        return seconds + perf_counter() - start

    def tree(self, repeat: int) -> float:
        def create() -> Any:
            with self.request():
                return read_tree(self)

        key = f'dogpile:{self.schema}:tree'
        return per_call(lambda: self.region.get_or_create(key, create), repeat)


def region_of(redis_url: str, **arguments: Any) -> CacheRegion:
    region: CacheRegion = make_region().configure(
        'dogpile.cache.redis',
        arguments={'url': redis_url, 'thread_local_lock': False, **arguments},
    )
    return region
