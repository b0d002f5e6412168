"""Books by their ids: what the contestants of :mod:`.case_books` do. A book is a row of the items.

The Django packages' side is in ``django_peer.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import count
from time import perf_counter
from typing import Any, NamedTuple, Protocol

import redis
from sqlalchemy import Select, select, update
from sqlalchemy.orm import Session

from onegov_ormcache import OrmCacheApp, orm_cached, rows
from tests.support.counting import Runs

from .contestants import Plain, region_of
from .peers import DjangoPeer, Environment
from .schema import Base, Item

#: The books that a request reads.
BOOKS = range(50)
#: The book that is renamed. No other one of these is in the same bucket of ``rows(Item.id)``.
RENAMED = 7


class Request(NamedTuple):
    """What a request took, and the names and values of the books that it got, in their order."""

    seconds: float
    books: list[list[Any]]


class BookContestant(Protocol):
    """The interface of the contestants that read books."""

    #: Its name in tables and plots.
    name: str
    #: The name of the contestant without a cache that its times are compared with.
    base: str
    #: The number of SQL statements that it has sent and that the counters do not see.
    uncounted: int
    #: The number of creator runs so far; None if they can't be counted.
    runs: int | None

    def read_books(self) -> Request:
        """Read all books in one request."""

    def rename_book(self) -> None:
        """Give one book another name by changing its object, and commit."""

    def change_all(self) -> None:
        """Change all books by one statement, and commit."""

    def empty(self) -> None:
        """Drop all values, those in Redis too."""

    def forget(self) -> None:
        """Drop the values that the process keeps; those in Redis stay."""

    def close(self) -> None:
        """Give all connections back."""


def book_of(id: int) -> Select[Any]:
    return select(Item.name, Item.value).where(Item.id == id)


def books_of(ids: Iterable[int]) -> Select[Any]:
    return select(Item.id, Item.name, Item.value).where(Item.id.in_(ids))


def timed(read: Callable[[], Iterable[Any]]) -> Request:
    start = perf_counter()
    found = read()
    seconds = perf_counter() - start
    return Request(seconds, [list(book) for book in found])


#: The new names, of which no two are equal.
NAMES = map('Renamed {}'.format, count())


def rename(session: Session) -> None:
    """Rename the book :data:`RENAMED` by its object, and commit."""
    book = session.get_one(Item, RENAMED)
    book.name = next(NAMES)
    session.commit()


def change_all(session: Session) -> None:
    """Change all books by one statement, and commit."""
    session.execute(update(Item).values(value=Item.value + 1))
    session.commit()


class BookApp(OrmCacheApp):
    """Books by id, whose values depend on their rows."""

    #: Counts the runs of the creators.
    runs: Runs

    @orm_cached(policy=rows(Item.id))
    def book(self, id: int) -> Any:
        self.runs('book')
        return self.session().execute(book_of(id)).one()

    def books(self, ids: Sequence[int]) -> dict[int, Any]:
        self.runs('books')
        return {id: book for id, *book in self.session().execute(books_of(ids))}

    @orm_cached(policy=rows(Item.id), many=books)
    def book_of_many(self, id: int) -> Any:
        self.runs('book_of_many')
        return self.session().execute(book_of(id)).one()


def book_app(dsn: str, redis_url: str, namespace: str) -> Any:
    """Return an application of this package with books, as a process of its own would have it."""

    class App(BookApp):
        runs = Runs()

    App.__qualname__ = 'BookApp'
    settings = {'dsn': dsn, 'redis_url': redis_url, 'namespace': namespace, 'base': Base}
    App.setting_section(section='orm_cache')(lambda: settings)
    app = App()
    app.setup_orm_cache()
    return app


def read_one_by_one(app: Any) -> list[Any]:
    return [app.book(id) for id in BOOKS]


def read_many(app: Any) -> list[Any]:
    return list(app.book.many(BOOKS).values())


def read_at_once(app: Any) -> list[Any]:
    return list(app.book_of_many.many(BOOKS).values())


#: How this package reads the books, and how many creator runs that takes if all are cold.
WAYS: dict[str, Callable[[Any], list[Any]]] = {
    'one by one': read_one_by_one,
    'many()': read_many,
    'many() and many=': read_at_once,
}


class OrmCacheBooks:
    """This package."""

    base = 'no cache'
    uncounted = 0

    def __init__(self, dsn: str, redis_url: str, schema: str, way: str) -> None:
        self.name = f'onegov_ormcache, {way}'
        self.schema = schema
        self.app = book_app(dsn, redis_url, schema)
        self._read = WAYS[way]
        self._redis = redis.Redis.from_url(redis_url)

    @property
    def runs(self) -> int:
        return int(self.app.runs.total)

    def read_books(self) -> Request:
        def request() -> list[Any]:
            with self.app.request_scope(self.schema):
                return self._read(self.app)

        return timed(request)

    def rename_book(self) -> None:
        with self.app.request_scope(self.schema) as scope:
            rename(scope.session())

    def change_all(self) -> None:
        with self.app.request_scope(self.schema) as scope:
            change_all(scope.session())

    def empty(self) -> None:
        drop(self._redis, f'*{self.schema}*:value:*')
        self.forget()

    def forget(self) -> None:
        tier = self.app.orm_cache.process_tier.of(f'{self.schema}|')
        for key in list(tier):
            del tier[key]

    def close(self) -> None:
        self._redis.close()
        self.app.close_orm_cache()


def drop(client: Any, pattern: str) -> None:
    """Delete the keys of a pattern from Redis."""
    if keys := list(client.scan_iter(pattern, count=10_000)):
        client.delete(*keys)


class PlainBooks(Plain):
    """No cache: a query for each book."""

    def __init__(self, dsn: str, schema: str) -> None:
        super().__init__(dsn, schema)
        #: The number of queries for books so far.
        self.runs = 0

    def compute_book(self, id: int) -> tuple[Any, ...]:
        self.runs += 1
        return tuple(self.session().execute(book_of(id)).one())

    def compute_books(self, ids: Iterable[int]) -> list[tuple[Any, ...]]:
        self.runs += 1
        found = {id: tuple(book) for id, *book in self.session().execute(books_of(ids))}
        return [found[id] for id in ids]

    def read_books(self) -> Request:
        def request() -> list[tuple[Any, ...]]:
            with self.request():
                return [self.compute_book(id) for id in BOOKS]

        return timed(request)

    def rename_book(self) -> None:
        with self.request() as session:
            rename(session)

    def change_all(self) -> None:
        with self.request() as session:
            change_all(session)

    def empty(self) -> None:
        """There is nothing to drop."""


class QueriedBooks(PlainBooks):
    """No cache: one query for all books."""

    name = 'no cache, one query'

    def read_books(self) -> Request:
        def request() -> list[tuple[Any, ...]]:
            with self.request():
                return self.compute_books(BOOKS)

        return timed(request)


class DogpileBooks(PlainBooks):
    """dogpile.cache's ``cache_on_arguments``; deleted after the commit.

    It is used at its best: a session is opened only if a creator needs one, locks hold over all
    processes, and one command deletes all keys that a change concerns.
    """

    name = 'dogpile.cache'

    def __init__(self, dsn: str, redis_url: str, schema: str) -> None:
        super().__init__(dsn, schema)
        self.region = region_of(redis_url, distributed_lock=True)

        @self.region.cache_on_arguments(namespace=schema)
        def book(id: int) -> tuple[Any, ...]:
            with self.request():
                return self.compute_book(id)

        @self.region.cache_multi_on_arguments(namespace=schema)
        def books(*ids: int) -> list[tuple[Any, ...]]:
            with self.request():
                return self.compute_books(ids)

        self.book: Any = book
        self.books: Any = books

    def read_books(self) -> Request:
        return timed(lambda: [self.book(id) for id in BOOKS])

    def rename_book(self) -> None:
        super().rename_book()
        self.book.invalidate(RENAMED)

    def change_all(self) -> None:
        super().change_all()
        self.empty()

    def empty(self) -> None:
        key_of = self.region.function_key_generator(self.schema, self.book.original)
        self.region.delete_multi([key_of(id) for id in BOOKS])


class DogpileManyBooks(DogpileBooks):
    """dogpile.cache's ``cache_multi_on_arguments``."""

    name = 'dogpile.cache, multi'

    def read_books(self) -> Request:
        return timed(lambda: self.books(*BOOKS))

    def rename_book(self) -> None:
        PlainBooks.rename_book(self)
        self.books.invalidate(RENAMED)

    def empty(self) -> None:
        self.books.invalidate(*BOOKS)


class DjangoBooks(DjangoPeer):
    """Django, with a cache or without: a query for each book.

    :param is_told: True: a statement that changes many rows is told to the cache.
    """

    #: Its creators are queries, which are counted as SQL statements.
    runs: int | None = None

    def __init__(
        self, environment: Environment, kind: str, dsn: str, redis_url: str, schema: str,
        is_told: bool = False,
    ) -> None:  # fmt: skip
        books = {'ids': list(BOOKS), 'renamed': RENAMED, 'is_told': is_told}
        super().__init__(environment, kind, dsn, redis_url, schema, books=books)
        if is_told:
            self.name += ', told'

    def read_books(self) -> Request:
        return Request(*self.ask('read_books'))

    def rename_book(self) -> None:
        self.ask('rename_book')

    def change_all(self) -> None:
        self.ask('change_all')

    def empty(self) -> None:
        self.ask('empty')
