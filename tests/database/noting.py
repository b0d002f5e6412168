"""Statements of every kind that SQLAlchemy has, each with the notes on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from sqlalchemy import (
    Column,
    Integer,
    MetaData,
    String,
    Table,
    and_,
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
    null,
    select,
    table,
    text,
    tuple_,
    union,
    union_all,
    update,
    values,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import aliased, joinedload, with_polymorphic
from sqlalchemy.sql.elements import quoted_name
from sqlalchemy.sql.expression import ColumnElement, FromClause

from onegov_ormcache.database.notes import Notes, Relation
from tests.support.models import Document, Group, Letter, User, membership

users, groups, documents, letters = (
    User.__table__, Group.__table__, Document.__table__, Letter.__table__,
)  # fmt: skip

OTHER = MetaData()
LONG = Table('a' * 62 + 'ä', OTHER, Column('id', Integer, primary_key=True))
UPPER = Table('Upper Case', OTHER, Column('id', Integer, primary_key=True))
UNQUOTED = Table(quoted_name('FoldedÄ', False), OTHER, Column('id', Integer, primary_key=True))
PLACED = Table('placed', OTHER, Column('id', Integer, primary_key=True), schema='Shared')
TOUCHED = Table(
    'touched', OTHER, Column('id', Integer, primary_key=True),
    Column('name', String, key='title'), Column('at', String, onupdate='now'),
)  # fmt: skip


class Hidden(ColumnElement[int]):
    """An element that renders what the compiler does not see."""

    inherit_cache = True
    type = Integer()


@compiles(Hidden)
def _compile_hidden(element: object, compiler: object, **options: object) -> str:
    return '(SELECT count(*) FROM groups)'


class HiddenTable(FromClause):
    """A table that renders what the compiler does not see."""

    inherit_cache = True
    named_with_column = False
    _hide_froms: list[Any] = []


@compiles(HiddenTable)
def _compile_hidden_table(element: object, compiler: object, **options: object) -> str:
    return 'groups'


def relations(*names: str) -> set[Relation]:
    """Return the relations of these names, which have no schema."""
    return {Relation(None, name) for name in names}


def columns(name: str, *updated: str) -> set[tuple[Relation, str]]:
    """Return columns of one relation, as the notes have them."""
    return {(Relation(None, name), each) for each in updated}


class Case(NamedTuple):
    """A statement and its notes."""

    name: str
    statement: Callable[[], Any]
    notes: Notes
    #: The dialects that can compile it.
    dialects: tuple[str, ...] = ('postgresql', 'sqlite')


def reading(*names: str, **others: Any) -> Notes:
    """Return the notes on a statement that only reads."""
    return Notes(reads=relations(*names), **others)


def chained() -> Any:
    first = select(users.c.id).cte('first')
    second = select(documents.c.owner_id).where(documents.c.owner_id.in_(select(first))).cte()
    return select(groups.c.id).where(groups.c.id.in_(select(second)))


def recursive() -> Any:
    tree = select(users.c.id).where(users.c.id == 1).cte('tree', recursive=True)
    return select(tree.union_all(select(documents.c.id).join(tree, tree.c.id == documents.c.id)))


def deleting_cte() -> Any:
    gone = delete(documents).returning(documents.c.owner_id).cte('gone')
    return select(users.c.id).join(gone, gone.c.owner_id == users.c.id)


def updating_cte() -> Any:
    done = update(documents).values(title='x').returning(documents.c.id).cte('done')
    return insert(groups).from_select(['id'], select(done.c.id))


def inserting_cte() -> Any:
    new = insert(users).values(name='x').returning(users.c.id).cte('new')
    return update(groups).values(name='y').where(groups.c.id.in_(select(new.c.id)))


def nested_targets() -> Any:
    gone = delete(letters).returning(letters.c.id).cte('gone')
    return update(documents).values(state='x').where(documents.c.id.in_(select(gone.c.id)))


def joined_to_itself() -> Any:
    other = aliased(User, name='other')
    return select(User.id, other.id).join(other, other.id == User.id)


def laterally() -> Any:
    titles = select(documents.c.title).where(documents.c.owner_id == users.c.id).lateral()
    return select(users.c.name, titles.c.title).join(titles, literal(True))


def upsert(dialect: Any) -> Any:
    statement = dialect.insert(users).values(id=1, name='a')
    return statement.on_conflict_do_update(
        index_elements=['id'], set_={'name': statement.excluded.name}
    )


def upsert_with_query(dialect: Any) -> Any:
    return dialect.insert(users).values(id=1, name='a').on_conflict_do_update(
        index_elements=['id'], set_={'name': 'b'},
        where=exists(select(groups.c.id)),
    )  # fmt: skip


CASES = (
    # reads
    Case('select', lambda: select(users), reading('users')),
    Case('entity', lambda: select(User), reading('users')),
    Case('alias', lambda: select(users.alias('u')), reading('users')),
    Case('join', lambda: select(users).join(documents), reading('users', 'documents')),
    Case('outer join', lambda: select(User).outerjoin(User.documents),
         reading('users', 'documents')),
    Case('secondary', lambda: select(User).join(User.groups),
         reading('users', 'membership', 'groups')),
    Case('any', lambda: select(User).where(User.groups.any(Group.name == 'a')),
         reading('users', 'membership', 'groups')),
    Case('has', lambda: select(Document).where(Document.owner.has(name='a')),
         reading('documents', 'users')),
    Case('contains', lambda: select(User).where(User.groups.contains(Group(id=1))),
         reading('users', 'membership')),
    Case('of_type', lambda: select(User).join(User.documents.of_type(Letter)),
         reading('users', 'documents', 'letters')),
    Case('itself', joined_to_itself, reading('users')),
    Case('joined inheritance', lambda: select(Letter), reading('documents', 'letters')),
    Case('base class', lambda: select(Document), reading('documents')),
    Case('with_polymorphic', lambda: select(with_polymorphic(Document, '*')),
         reading('documents', 'letters')),
    Case('joinedload', lambda: select(User).options(
        joinedload(User.groups), joinedload(User.documents.of_type(Letter))),
        reading('users', 'membership', 'groups', 'documents', 'letters')),
    Case('cte', chained, reading('users', 'documents', 'groups')),
    Case('recursive', recursive, reading('users', 'documents')),
    Case('union', lambda: union(select(users.c.id), select(groups.c.id)),
         reading('users', 'groups')),
    Case('union of entities', lambda: select(User).from_statement(
        union_all(select(User), select(User).where(User.id.in_(select(Group.id))))),
        reading('users', 'groups')),
    Case('scalar subquery', lambda: select(select(documents.c.id).scalar_subquery()),
         reading('documents')),
    Case('subquery', lambda: select(select(documents.c.id).subquery().c.id),
         reading('documents')),
    Case('exists', lambda: select(exists(select(documents.c.id))), reading('documents')),
    Case('in', lambda: select(users).where(
        users.c.id.not_in(select(documents.c.owner_id))), reading('users', 'documents')),
    Case('order by', lambda: select(users.c.id).order_by(
        select(func.count(documents.c.id)).scalar_subquery()),
        reading('users', 'documents', functions={'count'})),
    Case('case', lambda: select(case(
        (exists(select(groups.c.id)), users.c.name), else_=null())),
        reading('users', 'groups')),
    Case('cast', lambda: select(cast(users.c.id, String)), reading('users')),
    Case('function', lambda: select(func.lower(users.c.name), func.pg_catalog.Upper('a')),
         reading('users', functions={'lower', 'pg_catalog.Upper'})),
    Case('window', lambda: select(func.rank().over(order_by=users.c.id)),
         reading('users', functions={'rank'})),
    Case('filter', lambda: select(func.sum(users.c.id).filter(users.c.id > 1)),
         reading('users', functions={'sum'})),
    Case('function as table', lambda: select(func.series(1).table_valued('x')),
         reading(functions={'series'})),
    Case('values', lambda: select(values(column('n', Integer), name='v').data([(1,), (2,)])),
         reading()),
    Case('nothing', lambda: select(literal(1)), reading()),
    Case('lightweight table', lambda: select(table('users', column('id'))), reading('users')),
    Case('expanding', lambda: select(users.c.id).where(
        users.c.id.in_(bindparam('ids', expanding=True))), reading('users')),
    Case('lateral', laterally, reading('users', 'documents'), ('postgresql',)),
    Case('tuple', lambda: select(users.c.id).where(
        tuple_(users.c.id, users.c.name).in_(select(groups.c.id, groups.c.name))),
        reading('users', 'groups')),
    Case('for update', lambda: select(users).with_for_update(), reading('users', locks=True),
         ('postgresql',)),
    Case('for update within', lambda: select(groups).where(groups.c.id.in_(
        select(users.c.id).with_for_update(read=True, skip_locked=True))),
        reading('users', 'groups', locks=True), ('postgresql',)),
    # writes
    Case('insert', lambda: insert(users), Notes(writes=relations('users'))),
    Case('insert many', lambda: insert(users).values([{'name': 'a'}, {'name': 'b'}]),
         Notes(writes=relations('users'))),
    Case('insert a query', lambda: insert(users).values(
        name=select(groups.c.name).scalar_subquery()),
        Notes(writes=relations('users'), reads=relations('groups'))),
    Case('insert from select', lambda: insert(users).from_select(
        ['id', 'name'], select(groups).join(membership)),
        Notes(writes=relations('users'), reads=relations('groups', 'membership'))),
    Case('update', lambda: update(users).values(name='a'),
         Notes(writes=relations('users'), updates=columns('users', 'name'))),
    Case('update of columns', lambda: update(users).values({users.c.id: users.c.id + 1}),
         Notes(writes=relations('users'), updates=columns('users', 'id'))),
    Case('update by key', lambda: update(TOUCHED).values(title='a'),
         Notes(writes=relations('touched'), updates=columns('touched', 'name', 'at'))),
    Case('update with query', lambda: update(users).values(
        name=select(groups.c.name).scalar_subquery()).where(exists(select(documents.c.id))),
        Notes(writes=relations('users'), reads=relations('groups', 'documents'),
              updates=columns('users', 'name'))),
    Case('update from', lambda: update(users).values(name=groups.c.name).where(
        users.c.id == groups.c.id),
        Notes(writes=relations('users'), reads=relations('groups'),
              updates=columns('users', 'name'))),
    Case('update of entity', lambda: update(User).values(name='a'),
         Notes(writes=relations('users'), updates=columns('users', 'name'))),
    Case('delete', lambda: delete(users),
         Notes(writes=relations('users'), deletes=relations('users'))),
    Case('delete of entity', lambda: delete(User).where(User.documents.any()),
         Notes(writes=relations('users'), deletes=relations('users'),
               reads=relations('documents'))),
    Case('delete using', lambda: delete(users).where(users.c.id == documents.c.owner_id),
         Notes(writes=relations('users'), deletes=relations('users'),
               reads=relations('documents')), ('postgresql',)),
    Case('returning', lambda: delete(users).returning(users.c.id),
         Notes(writes=relations('users'), deletes=relations('users'))),
    Case('upsert', lambda: upsert(postgresql),
         Notes(writes=relations('users'), updates=columns('users', 'name')),
         ('postgresql',)),
    Case('upsert on SQLite', lambda: upsert(sqlite),
         Notes(writes=relations('users'), updates=columns('users', 'name')), ('sqlite',)),
    Case('upsert with query', lambda: upsert_with_query(postgresql),
         Notes(writes=relations('users'), reads=relations('groups'),
               updates=columns('users', 'name')), ('postgresql',)),
    Case('do nothing', lambda: postgresql.insert(users).on_conflict_do_nothing(),
         Notes(writes=relations('users')), ('postgresql',)),
    Case('delete in cte', deleting_cte,
         Notes(writes=relations('documents'), deletes=relations('documents'),
               reads=relations('users')), ('postgresql',)),
    Case('update in cte', updating_cte,
         Notes(writes=relations('documents', 'groups'), updates=columns('documents', 'title')),
         ('postgresql',)),
    Case('insert in cte', inserting_cte,
         Notes(writes=relations('users', 'groups'), updates=columns('groups', 'name')),
         ('postgresql',)),
    Case('delete in update', nested_targets,
         Notes(writes=relations('documents', 'letters'), deletes=relations('letters'),
               updates=columns('documents', 'state')), ('postgresql',)),
    # names
    Case('quoted name', lambda: select(UPPER), reading('Upper Case')),
    Case('name that is folded', lambda: delete(UNQUOTED),
         Notes(writes=relations('foldedÄ'), deletes=relations('foldedÄ'))),
    Case('name of 64 bytes', lambda: select(LONG), reading('a' * 62)),
    Case('schema', lambda: select(PLACED), Notes(reads={Relation('Shared', 'placed')})),
    Case('star', lambda: select(literal_column('*')).select_from(users), reading('users')),
    Case('number', lambda: select(literal_column('1'), literal_column("'a'")), reading()),
)  # fmt: skip

#: Statements of which the compiler does not see all, with the reason.
UNCLEAR = {
    'text': (lambda: text('SELECT 1'), 'has a text'),
    'text in where': (lambda: select(users).where(text('id = 1')), 'has a text'),
    'text as column': (lambda: select(text('name')).select_from(users), 'has a text'),
    'text in order by': (lambda: select(users).order_by(text('f(id)')), 'has a text'),
    'text as table': (lambda: select(users.c.id).select_from(text('groups')), 'has a text'),
    'text in join': (lambda: select(users).join(groups, text('a = b')), 'has a text'),
    'text in values': (lambda: insert(users).values(name=text('f()')), 'has a text'),
    'text with columns': (
        lambda: select(text('SELECT id FROM groups').columns(column('id')).subquery()),
        'has a text',
    ),
    'text of entities': (
        lambda: select(User).from_statement(text('SELECT * FROM users')), 'has a text',
    ),
    'literal': (lambda: select(literal_column('f(id)')), "has the literal 'f(id)'"),
    'literal in where': (
        lambda: select(users).where(literal_column('f(id)') == 1), "has the literal 'f(id)'",
    ),
    'literal in update': (
        lambda: update(users).values(name=literal_column('f()')), "has the literal 'f()'",
    ),
    'operator': (lambda: select(users).where(users.c.id.op('@@')(1)), "has the operator '@@'"),
    'unary operator': (
        lambda: select(users.c.id.op('@@')(users.c.name).label('x')), "has the operator '@@'",
    ),
    'prefix': (lambda: select(users).prefix_with('/* a */'), 'has a text'),
    'suffix': (lambda: select(users).suffix_with('FOR UPDATE'), 'has a text'),
    'prefix of insert': (lambda: insert(users).prefix_with('OR REPLACE'), 'has a text'),
    'hint': (lambda: select(users).with_statement_hint('X'), 'has a hint'),
    'hint of table': (lambda: select(users).with_hint(users, 'ONLY'), 'has a hint'),
    'own column': (lambda: select(Hidden()), '@compiles'),
    'own element in where': (lambda: select(users).where(Hidden() == 1), '@compiles'),
    'own element in on': (
        lambda: select(users).join(groups, and_(users.c.id == groups.c.id, Hidden() == 1)),
        '@compiles',
    ),
    'own element in order by': (lambda: select(users).order_by(Hidden()), '@compiles'),
    'own element of entity': (lambda: select(User).where(Hidden() == 1), '@compiles'),
    'own element in entity join': (
        lambda: select(User).join(Document, Hidden() == 1), '@compiles',
    ),
    'own element in a subquery': (
        lambda: select(users).where(users.c.id.in_(select(Hidden()))), '@compiles',
    ),
    'own element in a cte': (
        lambda: select(select(Hidden().label('n')).cte('c').c.n), '@compiles',
    ),
    'own element in update': (lambda: update(users).values(name=Hidden()), '@compiles'),
    'own element in returning': (
        lambda: update(users).values(name='a').returning(Hidden()), '@compiles',
    ),
    'own element in delete': (lambda: delete(users).where(Hidden() == 1), '@compiles'),
    'own element in insert from': (
        lambda: insert(users).from_select(['id'], select(Hidden())), '@compiles',
    ),
    'own table': (lambda: select(literal(1)).select_from(HiddenTable()), '@compiles'),
}  # fmt: skip

__all__ = ['CASES', 'UNCLEAR', 'Case', 'columns', 'relations']
