"""Values that the database takes for equal have the same bucket, for each type of a column.

Each type has a table on a real PostgreSQL. Of two values that SQLAlchemy sends to it, the server
says whether they are equal, and what it has stored.
"""

from __future__ import annotations

import datetime
import enum
import uuid
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Date,
    DateTime,
    Double,
    Enum,
    Float,
    Integer,
    Interval,
    LargeBinary,
    MetaData,
    Numeric,
    SmallInteger,
    String,
    Table,
    Text,
    Time,
    TypeDecorator,
    Unicode,
    Uuid,
    create_engine,
    insert,
    select,
    text,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.types import CHAR, REAL, TypeEngine

from onegov_ormcache.core.row_kinds import NULL, UNKNOWN, kind_of


class Mood(enum.Enum):
    GOOD = 'good'
    BAD = 'Good'


class Guid(TypeDecorator[uuid.UUID]):
    """A UUID as a text without hyphens, as SQLAlchemy's documentation has it."""

    impl = CHAR(32)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return None if value is None else uuid.UUID(str(value)).hex


class Halved(TypeDecorator[int]):
    """A number of which the database has the half."""

    impl = Integer
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return None if value is None else value // 2


words = st.text(st.sampled_from('aAbBß \u0131İiI\u017fsSK\u212a\u0301\u0307eéÉ'), max_size=4)
zones = st.sampled_from([datetime.UTC, datetime.timezone(datetime.timedelta(hours=5, minutes=30))])
integers = st.integers(-3, 3) | st.booleans() | st.integers(-(2**31), 2**31 - 1)
decimals = st.decimals('-999', '999', places=4) | st.sampled_from(
    [Decimal('0.005'), Decimal('-0.005'), Decimal('2.995'), Decimal('3.000'), Decimal('-0')]
)
floats = st.floats(-1000, 1000) | st.sampled_from([2.5, 0.0, -0.0, 2.9999999999999996, 1e-300])
numbers = integers | decimals | floats
moments = st.datetimes(datetime.datetime(2026, 3, 29), datetime.datetime(2026, 3, 29, 3))
zoned = st.builds(lambda moment, zone: moment.replace(tzinfo=zone), moments, zones)
days = st.dates(datetime.date(2026, 1, 1), datetime.date(2026, 1, 3))
times = st.times()
intervals = st.timedeltas(datetime.timedelta(-40), datetime.timedelta(40)) | st.sampled_from(
    [datetime.timedelta(1), datetime.timedelta(hours=24), datetime.timedelta(30)]
)
uuids = st.sampled_from([uuid.UUID(int=number) for number in (0, 1, 2**128 - 1)])


class Case(NamedTuple):
    """A type of a column, and the values that are sent to it."""

    type: TypeEngine[Any]
    values: st.SearchStrategy[Any]


CASES: dict[str, Case] = {
    'text': Case(Text(), words),
    'varchar': Case(String(3), words),
    'unicode': Case(Unicode(), words),
    'char': Case(CHAR(5), words),
    'smallint': Case(SmallInteger(), st.integers(-3, 3) | st.booleans()),
    'integer': Case(Integer(), integers),
    'bigint': Case(BigInteger(), st.integers(-(2**63), 2**63 - 1) | integers),
    'numeric': Case(Numeric(), numbers),
    'numeric(10,2)': Case(Numeric(10, 2), numbers),
    'numeric(10,0)': Case(Numeric(10, 0), numbers),
    'float': Case(Float(), numbers),
    'double': Case(Double(), numbers),
    'real': Case(REAL(), numbers | st.integers(2**22 - 2, 2**26)),
    'boolean': Case(Boolean(), st.booleans() | st.sampled_from([0, 1])),
    'date': Case(Date(), days),
    'timestamp': Case(DateTime(), moments),
    'timestamptz': Case(DateTime(timezone=True), zoned | moments),
    'postgresql.timestamp': Case(postgresql.TIMESTAMP(), moments),
    'time': Case(Time(), times),
    'interval': Case(Interval(), intervals),
    'bytea': Case(LargeBinary(), st.binary(max_size=2) | st.sampled_from([b'', b'\0', b'a'])),
    'uuid': Case(Uuid(), uuids),
    'uuid as text': Case(Uuid(as_uuid=False), uuids.map(str) | uuids.map(lambda u: u.hex)),
    'enum': Case(Enum(Mood, name='mood'), st.sampled_from(Mood) | st.sampled_from(['GOOD'])),
    'enum of texts': Case(Enum('a', 'A', 'a ', name='letter'), st.sampled_from(['a', 'A', 'a '])),
    'guid': Case(Guid(), uuids | uuids.map(str)),
    'halved': Case(Halved(), st.integers(-5, 5)),
}  # fmt: skip


@pytest.fixture(scope='module')
def connection(postgres_dsn: str) -> Iterator[Connection]:
    """A connection with a table for each type, in a transaction that is rolled back."""
    engine = create_engine(postgres_dsn)
    with engine.connect() as connection:
        connection.execute(text('CREATE SCHEMA row_kinds'))
        connection.execute(text('SET LOCAL search_path = row_kinds'))
        metadata.create_all(connection)
        yield connection
        connection.rollback()
    engine.dispose()


metadata = MetaData()
TABLES = {
    name: Table(name.replace(' ', '_'), metadata, Column('value', case.type))
    for name, case in CASES.items()
}


class Server:
    """Asks the server about values of one type."""

    def __init__(self, connection: Connection, table: Table) -> None:
        self._connection = connection
        self._table = table

    def ask(self, do: Callable[[], Any]) -> Any:
        """Return what a function returns; :data:`UNKNOWN` if the server refuses the values."""
        savepoint = self._connection.begin_nested()
        try:
            return do()
        except SQLAlchemyError:
            return UNKNOWN
        finally:
            savepoint.rollback()

    def finds(self, stored: Any, argument: Any) -> Any:
        """Return what was stored, and whether a row with this value is found by the argument."""
        column = self._table.c.value

        def find() -> tuple[Any, bool]:
            self._connection.execute(insert(self._table).values(value=stored))
            is_equal = self._connection.execute(select(column).where(column == argument)).all()
            found = self._connection.execute(select(column)).scalar_one()
            return found, bool(is_equal)

        return self.ask(find)


@pytest.mark.parametrize('name', CASES)
def test_equal_values_have_one_text(connection: Connection, name: str) -> None:
    """A row that the database finds by an argument was written with the argument's text, whether
    its value is told by who has stored it or by who has loaded it."""
    case = CASES[name]
    kind = kind_of(case.type, 'here')
    server = Server(connection, TABLES[name])
    met = {'equal': 0, 'text': 0}

    @given(case.values, case.values)
    @settings(max_examples=150, suppress_health_check=list(HealthCheck))
    def check(stored: Any, argument: Any) -> None:
        for asked in argument, stored:
            answer = server.finds(stored, asked)
            if answer is UNKNOWN:
                continue
            found, is_equal = answer
            looked_for = kind.text(asked)
            met['text'] += looked_for is not None
            if is_equal and looked_for is not None:
                met['equal'] += 1
                for told in stored, found:
                    written = kind.texts_written(told)
                    assert written is None or looked_for in written, (stored, found, asked)

    check()
    assert met['equal'] > 2
    assert met['text'] > 2


@pytest.mark.parametrize('name', CASES)
def test_null_is_no_other_value(name: str) -> None:
    """None has a text of its own; a value that nobody knows has none."""
    case = CASES[name]
    kind = kind_of(case.type, 'here')
    assert kind.text(None) == NULL
    assert kind.texts_written(None) == (NULL,)
    assert kind.text(UNKNOWN) is kind.texts_written(UNKNOWN) is None

    @given(case.values)
    @settings(max_examples=30)
    def check(value: Any) -> None:
        assert kind.text(value) != NULL

    check()


#: Values that no column of most types takes.
ODD: list[Any] = [
    float('nan'), float('inf'), -float('inf'), Decimal('NaN'), Decimal('sNaN'),
    Decimal('Infinity'), Decimal('1E+999999'), Decimal('1E-999999'), 10**400,
    -(10**400), 10**5000, 2**63, 1e308, 1j,
    '\0', '\ud800', b'\0', bytearray(b'a'), memoryview(b'a'), (), [], {}, object(),
    datetime.date.min, datetime.datetime.min, datetime.datetime.max.replace(tzinfo=datetime.UTC),
    datetime.datetime.min.replace(tzinfo=datetime.timezone(datetime.timedelta(hours=14))),
    datetime.time(1, tzinfo=datetime.UTC), datetime.timedelta.max, Mood.GOOD, Mood,
    uuid.UUID(int=1), 'x' * 2**20,
]  # fmt: skip


@pytest.mark.parametrize('name', CASES)
def test_odd_values(name: str) -> None:
    """Any value at all has a text or has none; none is an error, and none takes long."""
    kind = kind_of(CASES[name].type, 'here')
    for value in ODD:
        text, written = kind.text(value), kind.texts_written(value)
        assert text is None or isinstance(text, str)
        assert text is None or written is None or text in written


def test_texts_that_ignore_the_case(connection: Connection) -> None:
    """Letters that are equal in lower case have one text, whatever the database's language, so
    that columns of the type `citext` are compared rightly."""
    kind = kind_of(postgresql.CITEXT(), 'here')
    letters = [chr(code) for code in range(1, 0x20000) if not 0xD800 <= code < 0xE000]
    cased = [letter for letter in letters if len({letter, letter.lower(), letter.casefold()}) > 1]
    assert len(cased) > 1000
    known = connection.scalars(text('SELECT DISTINCT collname FROM pg_collation'))
    wanted = 'C', 'C.utf8', 'en_US.utf8', 'tr_TR.utf8', 'und-x-icu', 'tr-x-icu', 'lt-x-icu'
    asked = [name for name in known if name in wanted]
    assert 'C' in asked
    for collation in asked:
        query = text(
            f'SELECT word, lower(word COLLATE "{collation}") FROM unnest(CAST(:words AS text[])) '
            'AS word'
        )
        words = [*cased, *(letter.lower() for letter in cased)]
        lowered: dict[str, str] = {}
        for word, lower in connection.execute(query, {'words': words}):
            first = lowered.setdefault(lower, word)
            assert kind.text(word) == kind.text(first), (collation, word, first)
