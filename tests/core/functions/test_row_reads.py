"""Values of rows are never stale, and those of other rows stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select

from onegov_ormcache import OrmCacheApp, orm_cached, rows
from tests.core.functions.books import Base, Book, Shelf
from tests.support.applications import Applications, change, committed, value
from tests.support.counting import Runs


class Library(OrmCacheApp):
    """Functions of books by other columns than their ids."""

    runs: Runs

    def titles(self, *criteria: Any) -> list[str]:
        self.runs('titles')
        query = select(Book.title).where(*criteria).order_by(Book.title)
        return list(self.session().scalars(query))

    @orm_cached(policy=rows(Book.token))
    def by_token(self, token: str | None) -> list[str]:
        return self.titles(Book.token == token)

    @orm_cached(policy=rows(Book.isbn))
    def by_isbn(self, isbn: str | None) -> list[str]:
        return self.titles(Book.isbn == isbn)

    @orm_cached(policy=rows(Book.shelf_id, Book.isbn, argument=('shelf', 'isbn')))
    def both(self, isbn: str, *, shelf: int | None = None) -> list[str]:
        return self.titles(Book.isbn == isbn, Book.shelf_id == shelf)

    @orm_cached(policy=[rows(Book.shelf_id), 'auto'])
    def on_shelf(self, shelf_id: Any) -> list[str]:
        self.session().get(Shelf, 1)
        return self.titles(Book.shelf_id == shelf_id)


@pytest.fixture
def library(applications: Applications, tenant: str, runs: Runs) -> Library:
    """A library of two shelves and four books."""
    Library.runs = runs
    app = applications.start(Library, base=Base)
    change(app, tenant, Shelf(id=1), Shelf(id=2))
    change(
        app, tenant,
        *(
            Book(id=id, title=f'book {id}', token=f't{id}', isbn=f'I{id}', shelf_id=shelf)
            for id, shelf in enumerate([1, 1, 2, None], 1)
        ),
    )  # fmt: skip
    return app


READS: list[Callable[[Any], Any]] = [
    lambda app: app.by_token('t1'), lambda app: app.by_token('t2'), lambda app: app.by_token(None),
    lambda app: app.by_isbn('i1'), lambda app: app.by_isbn('I1'), lambda app: app.by_isbn('i2'),
    lambda app: app.both('I1', shelf=1), lambda app: app.both('i1', shelf=2),
    lambda app: app.both('i4'), lambda app: app.on_shelf(1), lambda app: app.on_shelf(2),
    lambda app: app.on_shelf(None),
]  # fmt: skip

CHANGES: dict[str, Callable[[Any], Any]] = {
    'renamed': lambda session: setattr(session.get(Book, 1), 'title', 'renamed'),
    'token': lambda session: setattr(session.get(Book, 1), 'token', 't2'),
    'no token': lambda session: setattr(session.get(Book, 1), 'token', None),
    'isbn': lambda session: setattr(session.get(Book, 1), 'isbn', 'i2'),
    'shelf': lambda session: setattr(session.get(Book, 1), 'shelf_id', 2),
    'no shelf': lambda session: setattr(session.get(Book, 1), 'shelf_id', None),
    'relationship': lambda session: setattr(session.get(Book, 4), 'shelf', session.get(Shelf, 1)),
    'deleted': lambda session: session.delete(session.get(Book, 1)),
    'added': lambda session: session.add(
        Book(id=5, title='new', token='t1', isbn='I1', shelf_id=1)
    ),
    'statement': lambda session: session.execute(
        Book.__table__.update().where(Book.id == 1).values(title='renamed', token='t2')
    ),
    'by token': lambda session: session.execute(
        Book.__table__.update().where(Book.token == 't1').values(title='renamed')
    ),
    'all': lambda session: session.execute(Book.__table__.update().values(title='same')),
}


@pytest.mark.parametrize('name', CHANGES)
def test_never_stale(
    library: Library, applications: Applications, tenant: str, name: str
) -> None:
    """After each kind of change, in its transaction, after its rollback and after its commit, a
    value is what its creator would compute."""
    elsewhere = applications.elsewhere(library)

    def check(app: Library) -> None:
        for read in READS:
            found = read(app)
            run = app.runs.total
            assert found == read(Plain(app.titles))
            assert app.runs.total == run + 1

    for end in 'rollback', 'commit':
        for app in library, elsewhere:
            with app.request_scope(tenant):
                check(app)
        with library.request_scope(tenant) as scope:
            CHANGES[name](scope.session())
            check(library)
            getattr(scope.session(), end)()
        for app in library, elsewhere:
            with app.request_scope(tenant):
                check(app)


class Plain:
    """Computes what the functions of a library compute.

    :param titles: reads the titles of books.
    """

    def __init__(self, titles: Callable[..., list[str]]) -> None:
        self.titles = titles

    def session(self) -> Any:
        return self

    def get(self, *_: Any) -> None:
        return None

    def __getattr__(self, name: str) -> Any:
        creator = getattr(Library, name).creator
        return lambda *args, **kwargs: creator(self, *args, **kwargs)


def test_other_rows_stay(library: Library, tenant: str, runs: Runs) -> None:
    """A change of one row leaves values of others, also with `auto`, which depends on other tables
    as a whole."""
    for read in READS:
        value(library, tenant, read)
    with committed(library, tenant) as scope:
        CHANGES['renamed'](scope.session())
    before = runs.total
    for read in READS:
        value(library, tenant, read)
    assert runs.total - before <= 7
    with committed(library, tenant) as scope:
        scope.session().add(Shelf(id=3))
    before = runs.total
    for read in READS:
        value(library, tenant, read)
    assert runs.total - before == 3
