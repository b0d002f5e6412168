"""Statements that change books, each with what is known of the rows that it changes."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any, NamedTuple

from sqlalchemy import (
    JSON,
    Column,
    Computed,
    ForeignKey,
    Integer,
    MetaData,
    Numeric,
    String,
    Table,
    UniqueConstraint,
    and_,
    between,
    bindparam,
    case,
    cast,
    column,
    delete,
    exists,
    func,
    insert,
    literal,
    literal_column,
    not_,
    null,
    or_,
    select,
    table,
    text,
    tuple_,
    type_coerce,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    aliased,
    mapped_column,
    with_loader_criteria,
)
from sqlalchemy.types import TypeDecorator


class Lower(TypeDecorator[str]):
    """A type that turns a value into another one."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: object) -> Any:
        return value.lower() if value else value


class Odd(String):
    """A type of the application's own, which compares in a way of its own."""

    class comparator_factory(String.Comparator):  # type: ignore[type-arg]
        def __eq__(self, other: Any) -> Any:
            return func.lower(self.expr) == func.lower(other)


class Base(DeclarativeBase):
    """The tables of these tests."""


class Author(Base):
    """Writes books."""

    __tablename__ = 'authors'

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Book(Base):
    """Has columns of every kind; novels are books, too, in the same table."""

    __tablename__ = 'books'
    __table_args__ = (UniqueConstraint('code', name='one_code'),)
    __mapper_args__ = {'polymorphic_on': 'kind', 'polymorphic_identity': 'book'}

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(String(20))
    shelf: Mapped[int | None]
    #: An attribute of another name than its column.
    isbn: Mapped[str | None] = mapped_column('code', String)
    #: A column of another key than its name, which must be quoted.
    room: Mapped[str | None] = mapped_column('Reading Room', key='place')
    kind: Mapped[str] = mapped_column(default='book')
    author_id: Mapped[int | None] = mapped_column(ForeignKey('authors.id'))
    state: Mapped[str] = mapped_column(server_default='new')
    touched: Mapped[str | None] = mapped_column(onupdate='yes')
    price: Mapped[Decimal | None] = mapped_column(Numeric(6, 2))
    lower: Mapped[str | None] = mapped_column(Lower)
    odd: Mapped[str | None] = mapped_column(Odd)
    data: Mapped[Any] = mapped_column(JSON, nullable=True)
    made: Mapped[int] = mapped_column(Computed('shelf + 1'), nullable=True)


class Novel(Book):
    """A book of the same table."""

    __mapper_args__ = {'polymorphic_identity': 'novel'}


class Item(Base):
    """The base of a class with a table of its own."""

    __tablename__ = 'items'
    __mapper_args__ = {'polymorphic_on': 'kind', 'polymorphic_identity': 'item'}

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]


class Disc(Item):
    """An item with a table of its own."""

    __tablename__ = 'discs'
    __mapper_args__ = {'polymorphic_identity': 'disc'}

    id: Mapped[int] = mapped_column(ForeignKey('items.id'), primary_key=True)
    length: Mapped[int]


books, authors = Book.__table__, Author.__table__
other, discs = aliased(Book, name='other'), Disc.__table__

#: The same table by another metadata, which knows less of it.
LIGHT = table('books', column('id', Integer), column('title', String), column('code'))
PARTIAL = Table(
    'books', MetaData(), Column('id', Integer, primary_key=True), Column('title', String)
)
TRANSLATED = Table(
    'books', MetaData(), Column('id', Integer, primary_key=True), Column('title', String),
    schema='elsewhere',
)  # fmt: skip

#: What all statements are asked for.
WATCHED = {
    'books': frozenset(c.name for c in books.c), 'discs': frozenset({'id', 'length'}),
}  # fmt: skip

Rows = list[dict[str, tuple[object, ...]]] | None


class Case(NamedTuple):
    """A statement, and the selections of the rows that it changes."""

    name: str
    #: Returns a statement, or executes something with a session and returns None.
    make: Callable[[], Any] | Callable[[Session], None]
    #: The selections; None if nothing is known.
    rows: Rows
    parameters: Any = None
    databases: tuple[str, ...] = ('sqlite', 'postgresql')
    table: str = 'books'
    options: dict[str, Any] = {}


def one(**values: Any) -> Rows:
    """Return a single selection; a value stands for itself, a tuple for all its elements."""
    return [{k: v if isinstance(v, tuple) else (v,) for k, v in values.items()}]


def each(*rows: dict[str, Any]) -> Rows:
    """Return a selection for each row."""
    return [{k: v if isinstance(v, tuple) else (v,) for k, v in row.items()} for row in rows]


set_title = update(Book).values(title='x')
set_titles = books.update().values(title='x')

WHERE = (
    Case('=', lambda: set_titles.where(books.c.id == 1), one(id=1)),
    Case('= of an entity', lambda: set_title.where(Book.id == 1), one(id=1)),
    Case('delete', lambda: delete(Book).where(Book.id == 1), one(id=1)),
    Case('delete by table', lambda: books.delete().where(books.c.id == 1), one(id=1)),
    Case('query', lambda s: s.query(Book).filter_by(id=1).delete() and None, one(id=1)),
    Case('query that updates', lambda s: s.query(Book).filter(Book.shelf == 10).update(
        {'title': 'x'}) and None, one(shelf=10)),
    Case('reversed', lambda: set_title.where(literal(1) == Book.id), one(id=1)),
    Case('bindparam', lambda: set_title.where(Book.id == bindparam('b')), one(id=1), {'b': 1}),
    Case('callable', lambda: set_title.where(Book.id == bindparam('b', callable_=lambda: 2)),
         one(id=2)),
    Case('two columns', lambda: set_title.where(Book.shelf == 10, Book.isbn == 'c1'),
         one(shelf=10, code='c1')),
    Case('and_', lambda: set_title.where(and_(Book.shelf == 10, and_(Book.id == 1, True))),
         one(shelf=10, id=1)),
    Case('where twice', lambda: set_title.where(Book.shelf == 10).where(Book.id == 1),
         one(shelf=10, id=1)),
    Case('same column twice', lambda: set_title.where(Book.id.in_([1, 2]), Book.id == 1),
         one(id=(1, 2))),
    Case('contradiction', lambda: set_title.where(Book.id == 1, Book.id == 2), one(id=1)),
    Case('in', lambda: set_title.where(Book.id.in_([1, 3])), one(id=(1, 3))),
    Case('in nothing', lambda: set_title.where(Book.id.in_([])), one(id=())),
    Case('in with None', lambda: set_title.where(Book.shelf.in_([10, None])),
         one(shelf=(10, None))),
    Case('in expanding', lambda: set_title.where(Book.id.in_(bindparam('ids', expanding=True))),
         one(id=(2, 3)), {'ids': [2, 3]}),
    Case('in of binds', lambda: set_title.where(Book.id.in_([bindparam('a'), 2])),
         one(id=(1, 2)), {'a': 1}),
    Case('in of an expression', lambda: set_title.where(Book.id.in_([func.abs(-1), 2])), None),
    Case('in of an expression first', lambda: set_title.where(
        Book.id.in_([func.abs(-1), 2]), Book.id == 1), one(id=1)),
    Case('is null', lambda: set_title.where(Book.shelf == None), one(shelf=None)),  # noqa: E711
    Case('is_', lambda: set_title.where(Book.shelf.is_(None)), one(shelf=None)),
    Case('= null in a parameter', lambda: set_title.where(Book.shelf == bindparam('b')),
         one(shelf=None), {'b': None}),
    Case('attribute of another name', lambda: set_title.where(Book.isbn == 'c1'), one(code='c1')),
    Case('column of another key', lambda: set_title.where(Book.room == 'r1'),
         [{'Reading Room': ('r1',)}]),
    Case('further criteria', lambda: set_title.where(Book.id == 1, func.lower(Book.title) == 'a',
         exists(select(Author.id).where(Author.id == Book.author_id))), one(id=1)),
    Case('no where', lambda: set_title, None),
    Case('or', lambda: set_title.where(or_(Book.id == 1, Book.id == 2)), None),
    Case('or beside', lambda: set_title.where(or_(Book.id == 1, Book.id == 2), Book.shelf == 10),
         one(shelf=10)),
    Case('not', lambda: set_title.where(~(Book.id == 1)), None),
    Case('not and', lambda: set_title.where(not_(and_(Book.id == 1, Book.shelf == 10))), None),
    Case('not in', lambda: set_title.where(Book.id.not_in([1])), None),
    Case('is not null', lambda: set_title.where(Book.shelf.is_not(None)), None),
    Case('!=', lambda: set_title.where(Book.id != 1), None),
    Case('>', lambda: set_title.where(Book.id > 1), None),
    Case('between', lambda: set_title.where(between(Book.id, 1, 2)), None),
    Case('like', lambda: set_title.where(Book.title.like('a')), None),
    Case('another column', lambda: set_title.where(Book.id == Book.shelf), None),
    Case('literal column', lambda: set_title.where(Book.id == literal_column('1')), None),
    Case('text', lambda: set_title.where(text('id = 1')), None),
    Case('text beside', lambda: set_title.where(Book.id == 1, text('1 = 1')), None),
    Case('function', lambda: set_title.where(Book.id == func.abs(-1)), None),
    Case('expression', lambda: set_title.where(Book.id + 1 == 2), None),
    Case('cast', lambda: set_title.where(cast(Book.id, String) == '1'), None),
    Case('cast of the value', lambda: set_title.where(Book.id == cast('1', Integer)), None),
    Case('coerced column', lambda: set_title.where(type_coerce(Book.title, String) == 'a'), None),
    Case('coerced value', lambda: set_title.where(Book.title == type_coerce('A', Lower)), None),
    Case('value of another type', lambda: set_title.where(
        Book.title == bindparam('b', 'A', type_=Lower())), None),
    Case('collation', lambda: set_title.where(Book.title.collate('C') == 'a'), None, None,
         ('postgresql',)),
    Case('collation on SQLite', lambda: set_title.where(Book.title.collate('NOCASE') == 'A'), None,
         None, ('sqlite',)),
    Case('text for a number', lambda: update(LIGHT).values(title='x').where(LIGHT.c.id == '1'),
         None, None, ('sqlite',)),
    Case('case', lambda: set_title.where(case((Book.id == 1, True), else_=False)), None),
    Case('tuple', lambda: set_title.where(tuple_(Book.id, Book.shelf).in_([(1, 10)])), None),
    Case('subquery', lambda: set_title.where(
        Book.id == select(func.min(other.id)).scalar_subquery()), None),
    Case('in a subquery', lambda: set_title.where(
        Book.id.in_(select(other.id).where(other.id == 1))), None),
    Case('criterion within a subquery', lambda: set_title.where(exists(
        select(other.id).where(other.id == 1, other.shelf == Book.shelf))), None),
    Case('correlated', lambda: set_title.where(exists(
        select(Author.id).where(Book.id == 1, Author.id == Book.author_id))), None),
    Case('alias', lambda: set_title.where(other.id == 1, other.shelf == Book.shelf), None),
    Case('update from', lambda: set_title.where(Author.id == Book.author_id, Author.id == 1,
         Book.shelf == 10), one(shelf=10)),
    Case('= another table', lambda: set_title.where(Book.author_id == Author.id), None),
    Case('delete using', lambda: delete(Book).where(Author.id == Book.author_id, Book.id == 1),
         one(id=1), None, ('postgresql',)),
    Case('literal_execute', lambda: set_title.where(
        Book.id == bindparam('b', 1, literal_execute=True)), None),
    Case('type of its own', lambda: set_title.where(Book.lower == 'X'), None),
    Case('comparator of its own', lambda: set_title.where(Book.odd == 'X'), None),
    Case('number that is rounded', lambda: set_title.where(Book.price == Decimal('1.5')), None),
    Case('returning', lambda: set_title.where(Book.id == 1).returning(Book.title), one(id=1)),
    Case('evaluate', lambda: set_title.where(Book.id == 1).execution_options(
        synchronize_session='evaluate'), one(id=1)),
    Case('fetch', lambda: set_title.where(Book.id == 1).execution_options(
        synchronize_session='fetch'), one(id=1)),
    Case('single-table inheritance', lambda: update(Novel).values(title='x').where(Novel.id == 3),
         one(id=3, kind='novel')),
    Case('loader criteria', lambda: set_title.where(Book.id == 1).options(
        with_loader_criteria(Book, Book.shelf == 10)), one(id=1, shelf=10)),
    Case('lightweight table', lambda: update(LIGHT).values(title='x').where(
        LIGHT.c.id == 1, LIGHT.c.code == 'c1'), one(id=1)),
    Case('another metadata', lambda: update(PARTIAL).values(title='x').where(PARTIAL.c.id == 1),
         one(id=1)),
    Case('executemany', lambda: set_titles.where(books.c.id == bindparam('b')),
         each({'id': 1}, {'id': 2}), [{'b': 1}, {'b': 2}]),
    Case('bulk update by key', lambda: update(Book), each({'id': 1}, {'id': 2}),
         [{'id': 1, 'title': 'x'}, {'id': 2, 'title': 'y'}]),
    Case('bulk_update_mappings', lambda s: s.bulk_update_mappings(
        Book.__mapper__, [{'id': 1, 'shelf': 5}, {'id': 2, 'shelf': 5}]),
        each({'id': 1}, {'id': 2})),
    Case('joined inheritance', lambda: delete(Disc).where(Disc.id == 1), one(id=1),
         table='discs'),
    Case('joined inheritance by table', lambda: discs.update().values(length=2).where(
        discs.c.id == 1), one(id=1), table='discs'),
    Case('joined inheritance by base', lambda: update(Disc).values(length=2).where(
        Item.__table__.c.id == 1, Disc.__table__.c.id == Item.__table__.c.id), None,
        table='discs'),
)  # fmt: skip

SET = (
    Case('to a value', lambda: update(Book).values(shelf=30).where(Book.shelf == 10),
         one(shelf=(10, 30))),
    Case('to None', lambda: update(Book).values(shelf=None).where(Book.shelf == 10),
         one(shelf=(10, None))),
    Case('to null()', lambda: update(Book).values(shelf=null()).where(Book.shelf == 10),
         one(shelf=(10, None))),
    Case('of the key', lambda: update(Book).values(id=7).where(Book.id == 4), one(id=(4, 7))),
    Case('without a criterion on it', lambda: update(Book).values(shelf=30).where(Book.id == 1),
         one(id=1)),
    Case('to an expression', lambda: update(Book).values(shelf=Book.shelf + 1).where(
        Book.shelf == 10, Book.id == 1), one(id=1)),
    Case('to another column', lambda: update(Book).values(id=Book.id + 10).where(Book.id == 4),
         None),
    Case('to a case', lambda: update(Book).values(
        id=case((Book.id == 4, 5), else_=4)).where(Book.id.in_([4, 5])), None),
    Case('to a subquery', lambda: update(Book).values(shelf=select(
        func.max(Author.id)).scalar_subquery()).where(Book.shelf == 10), None),
    Case('to a function', lambda: update(Book).values(title=func.lower('X')).where(
        Book.title == 'a'), None),
    Case('by column', lambda: update(books).values({books.c.shelf: 30}).where(
        books.c.shelf == 10), one(shelf=(10, 30))),
    Case('by key of a column', lambda: update(books).values({'place': 'r9'}).where(
        books.c.place == 'r1'), [{'Reading Room': ('r1', 'r9')}]),
    Case('by attribute', lambda: update(Book).values({Book.isbn: 'c9'}).where(Book.isbn == 'c1'),
         one(code=('c1', 'c9'))),
    Case('ordered', lambda: update(books).ordered_values((books.c.shelf, 30)).where(
        books.c.shelf == 10), one(shelf=(10, 30))),
    Case('by parameters', lambda: update(books).where(books.c.shelf == bindparam('old')),
         one(shelf=(10, 30)), {'old': 10, 'shelf': 30}),
    Case('by many parameters', lambda: update(books).where(books.c.shelf == bindparam('old')),
         each({'shelf': (10, 30)}, {'shelf': (30, 40)}),
         [{'old': 10, 'shelf': 30}, {'old': 30, 'shelf': 40}]),
    Case('by a bindparam', lambda: update(Book).values(shelf=bindparam('new')).where(
        Book.shelf == 10), one(shelf=(10, 30)), {'new': 30}),
    Case('onupdate', lambda: set_title.where(Book.touched == 'no', Book.id == 1), one(id=1)),
    Case('onupdate, overridden', lambda: update(Book).values(touched='x').where(
        Book.touched == 'no'), one(touched=('no', 'x'))),
    Case('of what another column is computed of', lambda: update(Book).values(shelf=50).where(
        Book.made == 11, Book.id == 1), one(id=1)),
    Case('text that is cut off', lambda: update(Book).values(title='x' + ' ' * 30).where(
        Book.title == 'a', Book.id == 1), one(id=1)),
    Case('of a number as text', lambda: update(LIGHT).values(id='7').where(LIGHT.c.id == 4), None,
         None, ('sqlite',)),
    Case('to a value of its own type', lambda: update(Book).values(
        title=bindparam('b', 'ABC', type_=Lower())).where(Book.title == 'a'), None),
)  # fmt: skip


def book(number: int, **values: Any) -> dict[str, Any]:
    """Return the values of a book."""
    return {'id': number, 'title': 't', **values}


INSERT = (
    Case('values', lambda: insert(books).values(id=7, title='t'),
         one(id=7, title='t', kind='book')),
    Case('of an entity', lambda: insert(Book).values(id=7, title='t', isbn='c7', kind='book'),
         one(id=7, title='t', code='c7', kind='book')),
    Case('parameters', lambda: insert(books), one(id=7, title='t', kind='book'), book(7)),
    Case('without key', lambda: insert(books).values(title='t', shelf=5),
         one(title='t', shelf=5, kind='book')),
    Case('key of None', lambda: insert(books).values(id=None, title='t'),
         one(title='t', kind='book'), None, ('sqlite',)),
    Case('None', lambda: insert(books).values(id=7, title='t', shelf=None),
         one(id=7, title='t', kind='book', shelf=None)),
    Case('expression', lambda: insert(books).values(id=7, title=func.lower('T'), kind='k'),
         one(id=7, kind='k')),
    Case('only uncertain', lambda: insert(books).values(
        title=func.lower('T'), kind=func.lower('K')), None),
    Case('query', lambda: insert(books).values(
        id=7, title=select(func.max(books.c.title)).scalar_subquery()), one(id=7, kind='book')),
    Case('uncertain types', lambda: insert(books).values(
        id=7, title='t', price=Decimal('1.005'), lower='ABC', odd='x', data={'a': 1}),
        one(id=7, title='t', kind='book')),
    Case('blanks', lambda: insert(books).values(id=7, title='t '), one(id=7, kind='book')),
    Case('several values', lambda: insert(books).values([book(7), book(8, title='u')]), each(
        {'id': 7, 'title': 't', 'kind': 'book'}, {'id': 8, 'title': 'u', 'kind': 'book'})),
    Case('several values by column', lambda: insert(books).values(
        [{books.c.id: 7, books.c.title: 't'}, {books.c.id: 8, books.c.title: 'u'}]), each(
        {'id': 7, 'title': 't', 'kind': 'book'}, {'id': 8, 'title': 'u', 'kind': 'book'})),
    Case('several values with an expression', lambda: insert(books).values(
        [book(7), book(8, title=func.lower('U'))]), each(
        {'id': 7, 'title': 't', 'kind': 'book'}, {'id': 8, 'kind': 'book'})),
    Case('several values with binds', lambda: insert(books).values(
        [book(7, title=literal('v')), book(8, title=bindparam('b', 'w'))]), each(
        {'id': 7, 'title': 'v', 'kind': 'book'}, {'id': 8, 'title': 'w', 'kind': 'book'})),
    Case('executemany', lambda: insert(books), each(
        {'id': 7, 'title': 't', 'kind': 'book'}, {'id': 8, 'title': 't', 'kind': 'book'}),
        [book(7), book(8)]),
    Case('bulk insert', lambda: insert(Book), each(
        {'id': 7, 'title': 't', 'kind': 'book'}, {'id': 8, 'title': 't', 'kind': 'book'}),
        [book(7), book(8)]),
    Case('bulk insert with returning', lambda: insert(Book).returning(Book.id), each(
        {'id': 7, 'title': 't', 'kind': 'book'}, {'id': 8, 'title': 't', 'kind': 'book'}),
        [book(7), book(8)]),
    Case('bulk_insert_mappings', lambda s: s.bulk_insert_mappings(
        Book.__mapper__, [book(7), book(8)]), each(
        {'id': 7, 'title': 't', 'kind': 'book'}, {'id': 8, 'title': 't', 'kind': 'book'})),
    Case('bulk_save_objects', lambda s: s.bulk_save_objects([Book(id=7, title='t')]),
         one(id=7, title='t', kind='book')),
    Case('from select', lambda: insert(books).from_select(
        ['id', 'title', 'kind'], select(books.c.id + 10, books.c.title, literal('book'))), None),
    Case('or replace', lambda: insert(books).prefix_with('OR REPLACE').values(
        id=7, title='t', code='c2'), None, None, ('sqlite',)),
    Case('1,000 rows', lambda: insert(books), each(
        *({'id': n, 'title': 't', 'kind': 'book'} for n in range(100, 1100))),
        [book(n) for n in range(100, 1100)]),
    Case('1,001 rows', lambda: insert(books), None, [book(n) for n in range(100, 1101)]),
)  # fmt: skip

DIALECTS: dict[str, Any] = {'sqlite': sqlite, 'postgresql': postgresql}


def upsert(dialect: Any, *, columns: Any = ('id',), values: Any, set_: Any, **options: Any) -> Any:
    """Return an upsert. ``set_`` may be a function of the row that was to be inserted."""
    statement = dialect.insert(books).values(values)
    target = {} if columns is None else {'index_elements': columns}
    chosen = set_(statement.excluded) if callable(set_) else set_
    return statement.on_conflict_do_update(**target, set_=chosen, **options)


PG = ('postgresql',)

#: Upserts, with a function of the dialect's module instead of none.
UPSERTS: tuple[tuple[str, Callable[[Any], Any], Rows, tuple[str, ...]], ...] = (
    ('of a new row', lambda d: upsert(d, values=book(7), set_={'title': 'x'}), one(id=7), ()),
    ('of an old row', lambda d: upsert(d, values=book(1), set_={'title': 'x'}), one(id=1), ()),
    ('to the excluded value', lambda d: upsert(
        d, values=book(1), set_=lambda e: {'title': e.title, 'id': e.id}), one(id=1), ()),
    ('of the target', lambda d: upsert(
        d, values=book(1), set_={'id': literal(77)}), one(id=(1, 77)), ()),
    ('of the target by column', lambda d: upsert(
        d, values=book(1), set_={books.c.id: literal(77)}), one(id=(1, 77)), ()),
    ('of the target to another column', lambda d: upsert(
        d, values=book(1, shelf=78), set_=lambda e: {'id': e.shelf}), None, ()),
    ('of the target to an expression', lambda d: upsert(
        d, values=book(1), set_={'id': books.c.id + 70}), None, ()),
    ('by column', lambda d: upsert(
        d, columns=[books.c.code],
        values=book(9, code='c1'), set_={'title': 'x'}), one(code='c1'), ()),
    ('by name', lambda d: upsert(
        d, columns=['code'], values=book(9, code='c1'), set_={'title': 'x'}),
        one(code='c1'), ()),
    ('with a criterion', lambda d: upsert(
        d, values=book(1), set_={'title': 'x'}, where=books.c.shelf == 99), one(id=1), ()),
    ('several rows', lambda d: upsert(
        d, values=[book(1), book(8)], set_=lambda e: {'title': e.title}),
        each({'id': 1}, {'id': 8}), ()),
    ('by an expression', lambda d: upsert(
        d, columns=[func.lower(books.c.title)], values=book(9, title='A'),
        set_={'shelf': 5}), None, ()),
    ('do nothing', lambda d: d.insert(books).values(book(7)).on_conflict_do_nothing(),
     one(id=7, title='t', kind='book'), ()),
    ('do nothing, on a target', lambda d: d.insert(books).values(book(1)).on_conflict_do_nothing(
        index_elements=['id']), one(id=1, title='t', kind='book'), ()),
    ('by constraint', lambda d: upsert(
        d, columns=None, constraint='one_code', values=book(9, code='c1'), set_={'title': 'x'}),
        one(code='c1'), PG),
    ('by the primary key', lambda d: upsert(
        d, columns=None, constraint=books.primary_key, values=book(1), set_={'title': 'x'}),
        one(id=1), PG),
    ('by a constraint that the metadata does not have', lambda d: upsert(
        d, columns=None, constraint='unknown', values=book(9, title='a'),
        set_={'title': 'x'}), None, PG),
)  # fmt: skip


def deleted_first() -> Any:
    gone = delete(books).where(books.c.id == 2).returning(books.c.id).cte('gone')
    return set_titles.where(books.c.id == 1, exists(select(gone.c.id)))


def within_select() -> Any:
    return select(delete(books).where(books.c.id == 2).returning(books.c.id).cte('gone'))


def beside_a_query() -> Any:
    named = select(authors.c.id).where(authors.c.id == 1).cte('named')
    return set_titles.where(books.c.id == 1, books.c.author_id.in_(select(named.c.id)))


WITH = (
    Case('delete within an update', deleted_first, None, None, PG),
    Case('delete within a select', within_select, None, None, PG),
    Case('query within an update', beside_a_query, one(id=1)),
)
