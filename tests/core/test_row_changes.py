"""Of 50 cached books, exactly those are computed again that a change concerns.

Each book has a value by its id, and one by the foreign key of its loans. All ids of this module
are in buckets of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import pytest
from sqlalchemy import ForeignKey, String, delete, insert, literal, select, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from onegov_ormcache import OrmCacheApp, orm_cached, rows
from onegov_ormcache.core.rows import MAX_BUCKETS, resolve_rows
from tests.support.applications import Applications, change, committed


class Base(DeclarativeBase):
    """The declarative base of the library."""


class Book(Base):
    """A book, whose loans are deleted with it by the ORM."""

    __tablename__ = 'books'
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(String(100))
    code: Mapped[int | None] = mapped_column(unique=True)
    loans: Mapped[list[Loan]] = relationship(
        back_populates='book', cascade='all, delete-orphan'
    )


class Loan(Base):
    """A loan of a book, or a note of one that is not lent any longer."""

    __tablename__ = 'loans'
    id: Mapped[int] = mapped_column(primary_key=True)
    book_id: Mapped[int | None] = mapped_column(ForeignKey('books.id'))
    reader: Mapped[str]
    book: Mapped[Book | None] = relationship(back_populates='loans')


class Shelf(Base):
    """A table that no policy names; it is emptied with its book by the database."""

    __tablename__ = 'shelves'
    id: Mapped[int] = mapped_column(primary_key=True)
    book_id: Mapped[int] = mapped_column(ForeignKey('books.id', ondelete='CASCADE'))


def alone(ids: Collection[int], number: int) -> list[int]:
    """Return the first of some ids, each in a bucket of its own, which is not that of None."""
    policy = resolve_rows(rows(Book.id), 'the test')
    found: dict[object, Any] = {policy.tags_for([None]): None}
    for each in ids:
        found.setdefault(policy.tags_for([each]), each)
    return list(found.values())[1 : number + 1]


#: Ids that no book has: of the first row by PostgreSQL's sequence, by SQLite, and others.
MISSING = [1, 900, 901, 902]

#: All ids that are read; the last 50 are those of books. 899 is the greatest.
IDS = alone([*MISSING, 899, *range(2, 800)], 54)
BOOKS = IDS[len(MISSING) :]
A, B, C = BOOKS[1:4]

#: Stands for all ids.
ALL = frozenset(IDS)
NONE: frozenset[int] = frozenset()


class Library(OrmCacheApp):
    """An application with a page for each book."""

    ran: set[tuple[str, int]]

    @orm_cached(policy=rows(Book.id))
    def book(self, id: int) -> Any:
        self.ran.add(('book', id))
        return self.session().execute(select(Book.title).where(Book.id == id)).scalar()

    @orm_cached(policy=rows(Loan.book_id))
    def lent(self, id: int) -> Any:
        self.ran.add(('lent', id))
        query = select(Loan.reader).where(Loan.book_id == id).order_by(Loan.id)
        return list(self.session().scalars(query))

    @orm_cached(policy=rows(Book.id))
    def renamed(self, id: int) -> str:
        self.session().get_one(Book, id).title = 'renamed'
        return 'renamed'


class Case(NamedTuple):
    """A change, and the ids whose values are computed again after it."""

    name: str
    change: Callable[[Session], object]
    books: Collection[int] = NONE
    lent: Collection[int] = NONE


def book(session: Session, id: int = A) -> Book:
    return session.get_one(Book, id)


def loan(session: Session) -> Loan:
    """Return the loan of the first book."""
    return session.get_one(Loan, 1)


def set_title(session: Session, *ids: int) -> None:
    for id in ids:
        book(session, id).title = 'new'
    session.flush()


def upsert(session: Session, *ids: int, **values: Any) -> None:
    module: Any = postgresql if session.get_bind().dialect.name == 'postgresql' else sqlite
    statement = module.insert(Book).values([{'id': id, 'title': 'new'} for id in ids])
    session.execute(
        statement.on_conflict_do_update(
            index_elements=['id'], set_={'title': statement.excluded.title, **values}
        )
    )


def upsert_on_code(session: Session) -> None:
    """Change the book with a code, whose id the statement does not tell."""
    module: Any = postgresql if session.get_bind().dialect.name == 'postgresql' else sqlite
    session.execute(
        module.insert(Book)
        .values(id=901, title='new', code=A)
        .on_conflict_do_update(index_elements=['code'], set_={'title': 'new'})
    )


def savepoint(session: Session, *, kept: bool) -> None:
    with session.begin_nested() as nested:
        set_title(session, A)
        if not kept:
            nested.rollback()


def failed_flush(session: Session) -> None:
    """A flush fails and is rolled back; then the transaction that follows changes a book."""
    book(session, A).title = 'new'
    session.add(Book(id=B, title='there is one'))
    with pytest.raises(IntegrityError):
        session.flush()
    session.rollback()
    set_title(session, C)


def failed_in_a_savepoint(session: Session) -> None:
    """A flush fails within a savepoint; the transaction goes on."""
    with pytest.raises(IntegrityError), session.begin_nested():
        session.add(Book(id=B, title='there is one'))
    set_title(session, C)


def replaced(session: Session) -> None:
    """A new object takes the place of a deleted one, which is one UPDATE."""
    session.delete(loan(session))
    session.add(Loan(id=1, book_id=B, reader='new'))


def moved_before_it_is_loaded(session: Session) -> None:
    """The foreign key is set while the old one is not in memory."""
    found = loan(session)
    session.expire(found)
    found.book_id = B


def appended(session: Session) -> None:
    other = book(session, B)
    other.loans.append(loan(session))
    session.flush()


def orphaned(session: Session) -> None:
    parent = book(session, A)
    parent.loans.clear()
    session.flush()


UPDATE = update(Book)

CASES = [
    Case('object: nothing', lambda s: book(s)),
    Case('object: same value', lambda s: setattr(book(s), 'title', book(s).title)),
    Case('object: title', lambda s: set_title(s, A), [A]),
    Case('object: titles', lambda s: set_title(s, A, B), [A, B]),
    Case('object: title, twice', lambda s: (set_title(s, A), set_title(s, A)), [A]),
    Case('object: SQL', lambda s: setattr(book(s), 'title', Book.title + '!'), [A]),
    Case('object: literal SQL', lambda s: setattr(book(s), 'title', literal('new')), [A]),
    Case('loan: SQL', lambda s: setattr(loan(s), 'book_id', Loan.book_id + 1), lent=ALL),
    Case('object: insert', lambda s: s.add(Book(id=901, title='new')), [901]),
    Case('object: delete', lambda s: s.delete(book(s, B)), [B]),
    Case('object: primary key', lambda s: setattr(book(s, B), 'id', 901), [B, 901]),
    Case('loan: other column', lambda s: setattr(loan(s), 'reader', 'new'), lent=[A]),
    Case('loan: insert', lambda s: s.add(Loan(id=2, book_id=B, reader='new')), lent=[B]),
    Case('loan: insert of none', lambda s: s.add(Loan(id=2, book_id=None, reader='new'))),
    # nobody knows here whether the database has a default
    Case('loan: insert without', lambda s: s.add(Loan(id=2, reader='new')), lent=ALL),
    Case('loan: delete', lambda s: s.delete(loan(s)), lent=[A]),
    Case('loan: moved', lambda s: setattr(loan(s), 'book_id', B), lent=[A, B]),
    Case('loan: to none', lambda s: setattr(loan(s), 'book_id', None), lent=[A]),
    Case('loan: relationship', lambda s: setattr(loan(s), 'book', book(s, B)), lent=[A, B]),
    # a book whose collection has changed has changed, too
    Case('loan: collection', appended, [B], [A, B]),
    Case('loan: orphan', orphaned, [A], [A]),
    Case('loan: replaced', replaced, lent=[A, B]),
    Case('loan: moved, not loaded', moved_before_it_is_loaded, lent=ALL),
    Case('loan: moved twice', lambda s: (
        setattr(loan(s), 'book_id', B), s.flush(), setattr(loan(s), 'book_id', C)
    ), lent=[A, B, C]),
    # statements that name the rows
    Case('core: update', lambda s: s.connection().execute(
        UPDATE.where(Book.id == A).values(title='new')), [A]),
    Case('core: update, IN', lambda s: s.connection().execute(
        UPDATE.where(Book.id.in_([A, B])).values(title='new')), [A, B]),
    Case('core: update of another column, too', lambda s: s.connection().execute(
        UPDATE.where(Book.id == A, Book.code == A).values(title='new')), [A]),
    Case('core: insert', lambda s: s.connection().execute(
        insert(Book), [{'id': 901, 'title': 'a'}, {'id': 902, 'title': 'b'}]), [901, 902]),
    Case('core: delete', lambda s: s.connection().execute(
        delete(Loan).where(Loan.book_id == A)), lent=[A]),
    Case('core: delete, IN', lambda s: s.connection().execute(
        delete(Loan).where(Loan.book_id.in_([A, B]))), lent=[A, B]),
    Case('core: moved', lambda s: s.connection().execute(
        update(Loan).where(Loan.book_id == A).values(book_id=B)), lent=[A, B]),
    Case('core: moved by its id', lambda s: s.connection().execute(
        update(Loan).where(Loan.id == 1).values(book_id=B)), lent=ALL),
    Case('upsert: of an old row', lambda s: upsert(s, A), [A]),
    Case('upsert: of a new row', lambda s: upsert(s, 901), [901]),
    Case('upsert: of both', lambda s: upsert(s, A, 901), [A, 901]),
    Case('upsert: by another column', upsert_on_code, ALL),
    Case('entity: update', lambda s: s.execute(
        UPDATE.where(Book.id == A).values(title='new')), [A]),
    Case('entity: update, fetched', lambda s: s.execute(
        UPDATE.where(Book.id == A).values(title='new'),
        execution_options={'synchronize_session': 'fetch'}), [A]),
    Case('entity: returning', lambda s: s.execute(
        UPDATE.where(Book.id == A).values(title='new').returning(Book.title)).all(), [A]),
    Case('entity: delete', lambda s: s.execute(
        delete(Loan).where(Loan.book_id == A)), lent=[A]),
    Case('entity: query', lambda s: s.query(Book).filter_by(id=A).update({'title': 'new'}), [A]),
    Case('bulk: update by keys', lambda s: s.execute(
        UPDATE, [{'id': A, 'title': 'a'}, {'id': B, 'title': 'b'}]), [A, B]),
    Case('bulk: insert', lambda s: s.execute(insert(Book), [{'id': 901, 'title': 'a'}]), [901]),
    Case('bulk: save new objects', lambda s: s.bulk_save_objects(
        [Book(id=901, title='a')]), [901]),
    Case('bulk: update mappings', lambda s: s.bulk_update_mappings(
        Book.__mapper__, [{'id': A, 'title': 'new'}]), [A]),
    # what does not tell which rows it changes
    Case('all: update', lambda s: s.execute(UPDATE.values(title='new')), ALL),
    Case('all: update by a code', lambda s: s.execute(
        UPDATE.where(Book.code == A).values(title='new')), ALL),
    Case('all: update of a range', lambda s: s.execute(
        UPDATE.where(Book.id <= A).values(title='new')), ALL),
    Case('all: update with OR', lambda s: s.execute(
        UPDATE.where((Book.id == A) | (Book.title == 'nothing')).values(title='new')), ALL),
    Case('all: update of a subquery', lambda s: s.execute(
        UPDATE.where(Book.id.in_(select(Loan.book_id))).values(title='new')), ALL),
    Case('all: insert from select', lambda s: s.execute(
        insert(Book).from_select(['id', 'title'], select(literal(901), literal('new')))), ALL),
    Case('all: text', lambda s: s.execute(
        text("UPDATE books SET title = 'new' WHERE id = :id"), {'id': A}), ALL),
    Case('all: driver', lambda s: s.connection().exec_driver_sql(
        f"UPDATE books SET title = 'new' WHERE id = {A}"), ALL),
    # transactions
    Case('undone: nothing of a savepoint', lambda s: savepoint(s, kept=True), [A]),
    # one eviction too many is harmless
    Case('undone: savepoint', lambda s: savepoint(s, kept=False), [A]),
    Case('undone: rolled back', lambda s: (set_title(s, A), s.rollback())),
    Case('undone: rolled back, then another', lambda s: (
        set_title(s, A), s.rollback(), set_title(s, B)), [B]),
    Case('undone: failed flush', failed_flush, [C]),
    Case('undone: failed flush in a savepoint', failed_in_a_savepoint, [C]),
]  # fmt: skip


class Shop:
    """An application whose values are all cached, in two processes on servers."""

    def __init__(self, applications: Applications, tenant: str) -> None:
        self.tenant = tenant
        self.applications = applications
        self.writer = applications.start(Library, base=Base)
        self.reader = applications.elsewhere(self.writer)
        for app in self.writer, self.reader:
            app.ran = set()

    def forget(self) -> None:
        """Forget what was computed so far."""
        self.writer.ran.clear()
        self.reader.ran.clear()

    def read(self) -> tuple[Any, Any]:
        """Read all values, in the other process first."""
        found = []
        for app in self.reader, self.writer:
            with app.request_scope(self.tenant):
                found.append((app.book.many(IDS), app.lent.many(IDS)))
        assert found[0] == found[1]
        return found[0]

    def truth(self) -> tuple[Any, Any]:
        """Return what all values must be, read without a cache."""
        with self.writer.request_scope(self.tenant) as scope:
            titles = dict(scope.session().execute(select(Book.id, Book.title)).all())
            lent: dict[int, list[str]] = {id: [] for id in IDS}
            for id, reader in scope.session().execute(select(Loan.book_id, Loan.reader)):
                if id in lent:
                    lent[id].append(reader)
        return {id: titles.get(id) for id in IDS}, lent

    def change(self, case: Case) -> None:
        """Make a change, and assert that exactly its values are computed again, and are right."""
        with committed(self.writer, self.tenant) as scope:
            case.change(scope.session())
        self.compare(case.books, case.lent)

    def compare(self, books: Collection[int], lent: Collection[int]) -> None:
        """Assert that exactly these values are computed again, and that all are right."""
        self.forget()
        assert self.read() == self.truth()
        ran = self.reader.ran | self.writer.ran
        found = {what: {id for name, id in ran if name == what} for what in ('book', 'lent')}
        assert found == {'book': set(books), 'lent': set(lent)}

    def restore(self) -> None:
        """Give the library its first rows, and compute all values."""
        with committed(self.writer, self.tenant) as scope:
            session = scope.session()
            session.execute(delete(Loan))
            session.execute(delete(Book))
            session.execute(
                insert(Book), [{'id': id, 'title': f'title {id}', 'code': id} for id in BOOKS]
            )
            session.execute(insert(Loan).values(id=1, book_id=A, reader='a'))
        self.read()
        self.forget()
        self.read()
        assert not self.reader.ran | self.writer.ran


@pytest.fixture
def shop(applications: Applications, tenant: str) -> Shop:
    return Shop(applications, tenant)


@pytest.mark.parametrize('kind', sorted({case.name.split(':')[0] for case in CASES}))
def test_what_a_change_evicts(shop: Shop, kind: str) -> None:
    """After a change exactly the values of its rows are computed again, and no value is stale."""
    failed = []
    for case in CASES:
        if case.name.split(':')[0] == kind:
            shop.restore()
            try:
                shop.change(case)
            except Exception as error:
                failed.append(f'{case.name}: {error}')
    assert not failed, '\n'.join(failed)


def test_a_row_that_the_database_numbers(shop: Shop) -> None:
    """An inserted row whose id only the database knows concerns the value of that id alone, which
    was None."""
    shop.restore()
    with committed(shop.writer, shop.tenant) as scope:
        scope.session().add(new := Book(title='new'))
        scope.session().flush()
        id = new.id
    assert id in MISSING
    shop.compare([id], NONE)


def test_several_scopes(shop: Shop) -> None:
    """Transactions that are open at one time evict what each of them has changed, and no more."""
    shop.restore()
    with committed(shop.writer, shop.tenant) as scope:
        loan(scope.session()).reader = 'new'
        scope.session().flush()
        if shop.reader is not shop.writer:  # SQLite has one writer at a time
            with committed(shop.reader, shop.tenant) as other:
                set_title(other.session(), A, B)
    shop.compare([A, B] if shop.reader is not shop.writer else NONE, [A])


def test_a_transaction_sees_its_own_rows(shop: Shop) -> None:
    """Within a transaction, only values of the rows that it has changed are computed again."""
    shop.restore()
    with shop.writer.request_scope(shop.tenant) as scope:
        set_title(scope.session(), A)
        values = shop.writer.book.many(IDS)
        assert values[A] == shop.writer.book(A) == 'new'
        assert shop.writer.ran == {('book', A)}
        scope.session().rollback()
        assert shop.writer.book(A) == f'title {A}'
    shop.compare(NONE, NONE)


def test_changes_without_signals(shop: Shop) -> None:
    """An object that is changed while signals are muted concerns all rows."""
    shop.restore()
    with committed(shop.writer, shop.tenant) as scope:
        with shop.writer.session_manager.muted():
            set_title(scope.session(), A)
    shop.compare(ALL, NONE)


def test_changes_that_are_reported(shop: Shop) -> None:
    """A table that is marked as changed concerns all rows, also of tables that the database may
    change with it."""
    for table, books, lent in ((Book, ALL, NONE), ('loans', NONE, ALL)):
        shop.restore()
        with committed(shop.writer, shop.tenant):
            shop.writer.mark_changed(table)
        shop.compare(books, lent)


def test_a_creator_that_writes(shop: Shop) -> None:
    """A row that a creator changes is evicted by the commit, like one that a view changes."""
    shop.restore()
    with committed(shop.writer, shop.tenant):
        assert shop.writer.renamed(A) == 'renamed'
    shop.compare([A], NONE)


@pytest.mark.parametrize('number', [MAX_BUCKETS, MAX_BUCKETS + 1])
@pytest.mark.parametrize('kind', ['object', 'statement', 'parameters'])
def test_many_rows(shop: Shop, number: int, kind: str) -> None:
    """Up to a number of buckets, a transaction evicts single rows; more are all rows."""
    shop.restore()
    ids = alone([*IDS, *range(2, 2000)], number + 1)[1:]
    with committed(shop.writer, shop.tenant) as scope:
        session = scope.session()
        if kind == 'object':
            for id in BOOKS:
                book(session, id).title = 'new'
            session.add_all(Book(id=id, title='new') for id in ids if id not in BOOKS)
        elif kind == 'statement':
            session.execute(UPDATE.where(Book.id.in_(ids)).values(title='new'))
        else:
            upsert(session, *ids)
    shop.compare(ALL.intersection(ids) if number == MAX_BUCKETS else ALL, NONE)


def test_a_release_without_the_policy(shop: Shop) -> None:
    """A writer whose code does not have the policies evicts the values of all rows, whatever it
    changes: also a table that no policy names."""

    class Older(OrmCacheApp):
        @orm_cached(policy='on-table-change:shelves')
        def shelves(self) -> int:
            return self.session().query(Shelf).count()

    if shop.reader is shop.writer:
        pytest.skip('the embedded back end has one process')
    older = shop.applications.start(Older, base=Base)
    for new in (Book(id=901, title='new'), Shelf(id=1, book_id=A)):
        shop.restore()
        change(older, shop.tenant, new)
        shop.compare(ALL, ALL)
