"""Cached rows: they can do what the rows of a query can, for each reader."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from sqlalchemy import MetaData, create_engine, func, literal_column, select, text
from sqlalchemy.engine import Row, RowMapping
from sqlalchemy.orm import Bundle, DeclarativeBase, Mapped, Session, aliased, mapped_column

from onegov_ormcache import OrmCacheApp, orm_cached
from onegov_ormcache.errors import RowKeyError
from onegov_ormcache.tiers.serializer import Serializer
from tests.support.applications import Applications, change, value
from tests.support.models import Base, Document, Letter, User
from tests.tiers.serializable import form, rows

USERS = User.__table__
OTHER = aliased(User)
COUNT = func.count().label('count')


def read_by_each(
    applications: Applications, tenant: str, query: Callable[[Any], Any]
) -> Iterator[tuple[Any, Any]]:
    """Yield what the query returned to the creator, with what each of three readers gets: the
    one whose run computed it, another scope, and another process."""

    class App(OrmCacheApp):
        @orm_cached(policy=[User, Document])
        def found(self) -> Any:
            returned.append(query(self.session()))
            return returned[0]

    returned: list[Any] = []
    app = applications.start(App)
    change(app, tenant, User(id=1, name='a'), Letter(id=1, title='t', address='x', owner_id=1))
    for reader in (app, app, applications.elsewhere(app)):
        found = value(reader, tenant, lambda app: app.found)
        yield returned[0], found
    assert len(returned) == 1


def test_cached_rows(applications: Applications, tenant: str) -> None:
    """A cached row has attributes, indexes, slices, a mapping; it equals a tuple, can be unpacked,
    hashed and pickled."""

    def query(session: Any) -> Any:
        return session.execute(select(User.id, User.name.label('called'))).all()

    for returned, (row,) in read_by_each(applications, tenant, query):
        assert type(row) is Row
        assert (row.id, row.called, row[0], row[-1], row[:1]) == (1, 'a', 1, 'a', (1,))
        assert row._fields == ('id', 'called')
        assert row._asdict() == dict(row._mapping) == {'id': 1, 'called': 'a'}
        assert row == (1, 'a') == returned[0]
        assert row < (1, 'b')
        number, name = row
        assert (number, name) == (1, 'a')
        assert hash(row) == hash((1, 'a'))
        assert 'called' in row._mapping
        assert row._mapping.get('nothing', 7) == 7
        assert len(row) == 2
        assert repr(row) == "(1, 'a')"
        assert pickle.loads(pickle.dumps(row))._mapping['called'] == 'a'
        with pytest.raises(AttributeError):
            row.nothing
        with pytest.raises(AttributeError, match="can't set attribute"):
            row.id = 2
        with pytest.raises(KeyError):
            row._mapping['nothing']


QUERIES: list[tuple[str, Callable[[Any], Any], Iterable[Any]]] = [
    ('attributes', lambda s: s.query(User.id, User.name), [User.id, User.name, USERS.c.id]),
    ('columns', lambda s: s.execute(select(USERS)), [USERS.c.id, USERS.c.name, 'users_name']),
    ('core', lambda s: s.connection().execute(select(USERS)), [USERS.c.name, 'users_name']),
    (
        'inherited attributes',
        lambda s: s.execute(select(Letter.id, Letter.title, Document.id.label('number'))),
        [Letter.id, Letter.title, Letter.__table__.c.id, Document.__table__.c.title],
    ),
    ('part', lambda s: s.execute(select(User.id, User.name)).columns('name'), [User.name]),
    (
        'text',
        lambda s: s.execute(text('SELECT id, name FROM users').columns(User.id, User.name)),
        [USERS.c.id, USERS.c.name, User.__table__.c.name],
    ),
]


@pytest.mark.parametrize(
    ('query', 'keys'), [case[1:] for case in QUERIES], ids=[case[0] for case in QUERIES]
)
@pytest.mark.parametrize('mappings', [False, True])
def test_keys_of_rows(
    on_servers: Applications,
    tenant: str,
    query: Callable[[Any], Any],
    keys: Iterable[Any],
    mappings: bool,
) -> None:
    """A cached row or mapping finds its values by the columns and attributes that the query has
    selected, as the query's own rows do, and by no others."""

    def run(session: Any) -> Any:
        result = query(session)
        if mappings and not hasattr(result, 'mappings'):
            return [row._mapping for row in result]
        return result.mappings().all() if mappings else result.all()

    for (returned,), (found,) in read_by_each(on_servers, tenant, run):
        assert form(found) == form(returned)
        assert type(found) is (RowMapping if mappings else Row)
        original = returned if mappings else returned._mapping
        cached = found if mappings else found._mapping
        for key in keys:
            assert cached[key] == original[key]
            assert key in cached
        for key in (OTHER.name, Document.owner_id, 'nothing'):
            assert key not in original
            assert key not in cached


@pytest.mark.parametrize('key', [OTHER.name, COUNT, literal_column('1'), User.name, User])
def test_keys_without_a_name_are_refused(
    applications: Applications, tenant: str, key: Any
) -> None:
    """A column of an alias, a label or expression, and whatever was not selected is no key of a
    cached row, for the first reader as for all others; the error has the names."""

    def query(session: Any) -> Any:
        statement = select(User.id, OTHER.name.label('other'), OTHER.name, COUNT)
        statement = statement.join(OTHER, OTHER.id == User.id).group_by(User.id, OTHER.name)
        return session.execute(statement).all()

    for _, (row,) in read_by_each(applications, tenant, query):
        assert row._mapping[User.id] == 1
        assert key not in row._mapping
        assert row._mapping.get(key, 7) == 7
        with pytest.raises(RowKeyError, match="Use a name: 'id', 'other', 'name', 'count'"):
            row._mapping[key]
        assert row._mapping['name'] == row.other == 'a'
        assert row._mapping['count'] == row[-1] == 1


def test_rows_within_rows(on_servers: Applications, tenant: str) -> None:
    """The row of a bundle comes back within its row, with its names."""

    def query(session: Any) -> Any:
        return session.execute(select(Bundle('user', User.id, User.name), User.id)).all()

    for returned, (row,) in read_by_each(on_servers, tenant, query):
        assert form([row]) == form(returned)
        assert row.user.name == 'a'
        assert row._mapping[User.id] == 1


def test_attributes_of_a_class_in_a_function_are_no_keys() -> None:
    """A class that its module does not have gives no keys; the columns of its table do."""

    class LocalBase(DeclarativeBase):
        pass

    class Thing(LocalBase):
        __tablename__ = 'things'
        id: Mapped[int] = mapped_column(primary_key=True)

    engine = create_engine('sqlite://')
    LocalBase.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Thing(id=1))
        (row,) = session.execute(select(Thing.id)).all()
    serializer = Serializer(tables=LocalBase.metadata.tables)
    decoded = serializer.decode(serializer.encode(row).data)
    assert row._mapping[Thing.id] == decoded._mapping[Thing.__table__.c.id] == 1
    with pytest.raises(RowKeyError, match=r'InstrumentedAttribute Thing\.id'):
        decoded._mapping[Thing.id]


def test_columns_of_a_table_outside_of_the_metadata_are_no_keys() -> None:
    """A row of a table that has only the name of the application's table does not find its
    values by the columns of the application's."""
    engine = create_engine('sqlite://')
    Base.metadata.create_all(engine)
    twin = USERS.to_metadata(MetaData())
    with engine.begin() as connection:
        connection.execute(twin.insert().values(id=1, name='a'))
        row = connection.execute(select(twin)).one()
    serializer = Serializer(tables=Base.metadata.tables)
    decoded = serializer.decode(serializer.encode(row).data)
    assert row._mapping['name'] == decoded._mapping['name'] == row._mapping[twin.c.name]
    for column in (twin.c.name, USERS.c.name):
        assert column not in decoded._mapping
    assert USERS.c.name not in row._mapping


def test_keys_that_another_process_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has not imported the module of a mapped class reads rows by name, and by
    the attributes of the class as soon as it has the module."""
    engine = create_engine('sqlite://')
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(User(id=1, name='a'))
        row = session.execute(select(User.id, User.name)).one()
    data = Serializer(tables=Base.metadata.tables).encode(row).data
    elsewhere = Serializer(tables=Base.metadata.tables)
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, User.__module__)
        early = elsewhere.decode(data)
        assert early._mapping['name'] == early._mapping[USERS.c.name] == 'a'
        with pytest.raises(RowKeyError):
            early._mapping[User.name]
    assert elsewhere.decode(data)._mapping[User.name] == 'a'
    assert Serializer().decode(data)._mapping[User.name] == 'a'


def test_metadata_of_rows_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of many shapes are read; a serializer keeps what it knows of a few of them."""
    monkeypatch.setattr('onegov_ormcache.tiers.rows.KEPT', 3)
    serializer = Serializer()
    for number in range(10):
        (row,) = rows((number,), keys=(f'name_{number}',))
        decoded = serializer.decode(serializer.encode(row).data)
        assert decoded._mapping[f'name_{number}'] == number
        assert len(serializer._row_keys._kept) <= 3
