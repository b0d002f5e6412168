"""The serializer: every value comes back exactly as it was, or is refused with its place."""

from __future__ import annotations

import collections
import enum
import functools
import gc
import io
import struct
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, make_dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pytest
from frozendict import frozendict
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup
from ormsgpack import Ext, Fragment, packb
from sqlalchemy import ForeignKey, create_engine, select, text
from sqlalchemy.engine import IteratorResult, Row
from sqlalchemy.engine.result import SimpleResultMetaData
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    Session,
    mapped_column,
    registry,
    relationship,
)
from sqlalchemy.sql import quoted_name

from onegov_ormcache.errors import ConfigurationError, UndecodableValue, ValueNotCacheable
from onegov_ormcache.tiers.refusals import MAX_DEPTH
from onegov_ormcache.tiers.serializer import LARGE, VERSION, Serializer
from tests.support.examples import examples


class Color(enum.Enum):
    RED = 'red'
    CRIMSON = 'red'  # noqa: PIE796 - an alias
    BLUE = (1, 2)


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Mood(enum.StrEnum):
    GOOD = 'good'


class Right(enum.Flag):
    READ = 1
    WRITE = 2
    BOTH = 3


class Bits(enum.IntFlag):
    A = 1
    B = 2**70


class Wired(enum.Flag):
    ON = 1

    @classmethod
    def _missing_(cls, value: object) -> Any:
        raise KeyboardInterrupt


class Ejecting(enum.IntFlag, boundary=enum.EJECT):
    A = 1


class Open(enum.Enum):
    KNOWN = 1

    @classmethod
    def _missing_(cls, value: object) -> Any:
        member: Any = object.__new__(cls)
        member._name_, member._value_ = 'UNKNOWN', value
        return member


class NoEnum:
    __members__ = {'RED': 1}


holder = SimpleNamespace(Color=Color)


class Outer:
    class Inner(enum.Enum):
        X = 1


class Point(NamedTuple):
    x: int
    y: object = None


class Empty(NamedTuple):
    pass


Loose = collections.namedtuple('Loose', 'a b')


class LooseChild(Loose):
    """Has a dict of its own, unlike a named tuple."""


@dataclass
class Node:
    name: str
    children: list[Node] = field(default_factory=list)
    size: int = field(init=False, default=0)

    @functools.cached_property
    def label(self) -> str:
        return f'<{self.name}>'


@dataclass
class Box:
    content: object


@dataclass(frozen=True)
class Money:
    amount: Decimal
    note: Any = None


@dataclass(frozen=True, slots=True)
class Slotted:
    a: object
    total: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, 'total', 41)


@dataclass(slots=True)
class Unset:
    a: int = field(init=False)


class Unregistered(NamedTuple):
    a: int


@dataclass
class UnregisteredData:
    a: int


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = 'users'
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    boss_id: Mapped[int | None] = mapped_column(ForeignKey('users.id'))
    staff: Mapped[list[User]] = relationship()


class DataUser(MappedAsDataclass, Base):
    __tablename__ = 'data_users'
    id: Mapped[int] = mapped_column(primary_key=True)


class Zone(tzinfo):
    def utcoffset(self, moment: datetime | None) -> timedelta:
        return timedelta(hours=1)

    def dst(self, moment: datetime | None) -> None:
        return None

    def tzname(self, moment: datetime | None) -> None:
        return None


TYPES = [Point, Empty, LooseChild, Node, Box, Money, Slotted, Unset]
ZURICH = ZoneInfo('Europe/Zurich')


@pytest.fixture
def serializer() -> Serializer:
    return Serializer(TYPES)


def rows(*values: tuple[Any, ...], keys: tuple[str, ...] = ('id', 'name')) -> list[Row[Any]]:
    result: IteratorResult[Any] = IteratorResult(SimpleResultMetaData(keys), iter(values))
    return list(result.all())


def framed(body: bytes, version: int = VERSION) -> bytes:
    """The bytes of a stored value with this body."""
    return struct.pack('>BQ', version, len(body)) + body


def form(value: Any) -> object:
    """Something comparable that has each type and detail of the value, at every depth."""
    cls = type(value)
    if isinstance(value, enum.Enum):
        return cls, value.name, form(value.value)
    if cls is float:
        return cls, struct.pack('>d', value)
    if cls is Decimal:
        return cls, value.as_tuple()
    if cls in (datetime, time):
        return cls, value.replace(tzinfo=None).isoformat(), value.fold, zone_form(value.tzinfo)
    if isinstance(value, Row):
        return cls, value._fields, [form(part) for part in value]
    if isinstance(value, list | tuple):
        return cls, [form(part) for part in value]
    if isinstance(value, set | frozenset):
        return cls, sorted((form(part) for part in value), key=repr)
    if isinstance(value, dict):
        return cls, [(form(key), form(part)) for key, part in value.items()]
    if cls in TYPES:
        return cls, [(name, form(getattr(value, name))) for name in cls.__dataclass_fields__]
    return cls, value


def zone_form(zone: tzinfo | None) -> object:
    if isinstance(zone, ZoneInfo):
        return ZoneInfo, zone.key
    return type(zone), zone and (zone.utcoffset(None), zone.tzname(None))


def nested(levels: int, wrap: Callable[[Any], Any]) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = wrap(value)
    return value


VALUES: list[object] = [
    None, True, False, 0, -1, 127, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1,
    10**5000, -(10**5000), 0.0, -0.0, 1.5, float('nan'), float('inf'), -float('inf'), 5e-324,
    '', 'Zürich', '\ud800', 'a\udcffb', '\ud83d\ude00', '😀', '\0', b'', b'\0\xff',
    [], [1, True, 1.0, '1', b'1', None], [[], [[]]], (), (1,), ((),), ([],), (1, 'a', (2, (3,))),
    [(1, 'a'), (2, 'b')], [(1, 2), (3,)], [(), ()], [(1, [2]), (3, (4, 5))], ((1, 2), (3, 4)),
    [(1, '\ud800'), (2**70, 'b')], [(1,), [1]], [((1, 2), (3, 4)), ((5,), (6,))],
    {}, {'a': 1}, {'a': {'b': [{'c': ()}]}}, {'z': 1, 'a': 2}, {1: 'a', '1': 'b', b'1': 'c'},
    {True: 1}, {1: 1}, {1.0: 1}, {None: 1, (): 2, (1, (2, 'x')): 3}, {-0.0: 0},
    {frozenset({1, 2}): 1}, {Color.RED: 1, Level.LOW: 2}, {'\ud800': 1}, {2**70: 2**70},
    {date(2024, 1, 1): [1]}, {(1, 'de'): (2, 'x'), (2, 'de'): (3, 'y')}, {'': ''},
    frozendict(), frozendict({'a': frozendict({(1, 2): 3})}), [frozendict({1: 'x'})],
    set(), {1, 'a', None, (1, 2)}, frozenset(), frozenset({frozenset({1}), 2}), {(1, 2), (3, 4)},
    datetime(2024, 2, 29, 23, 59, 59, 999999), datetime.min, datetime.max,
    datetime(2024, 10, 27, 2, 30, fold=1), datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZURICH),
    datetime(2024, 10, 27, 2, 30, tzinfo=ZURICH), datetime(2024, 1, 1, tzinfo=UTC),
    datetime(2024, 1, 1, tzinfo=ZoneInfo('UTC')),
    datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=-5, seconds=-1, microseconds=7))),
    datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=1), 'a, b \ud800')),
    datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=1), '')),
    datetime.max.replace(tzinfo=timezone(timedelta(hours=-23))),
    date.min, date.max, time(), time(1, 2, 3, 4, fold=1), time(1, tzinfo=UTC),
    time(1, 2, fold=1, tzinfo=ZURICH), timedelta(), timedelta.min, timedelta.max,
    timedelta(microseconds=-1),
    Decimal('1.10'), Decimal('-0'), Decimal('1E+999999'), Decimal('NaN'), Decimal('sNaN'),
    Decimal('-sNaN123'), Decimal('Infinity'), Decimal('0E-30'), Decimal('1' * 60),
    uuid.UUID(int=0), uuid.UUID('8c7d6f1e-58b6-4a5e-9d1b-3f2a5c0e7b11'),
    Color.RED, Color.CRIMSON, Color.BLUE, Level.HIGH, Mood.GOOD, Outer.Inner.X, Right.READ,
    Right.READ | Right.WRITE, Right(0), Bits.A | Bits.B, Bits(4), Bits(-1), ~Bits.A,
    [Level.LOW, 1, Mood.GOOD, 'good'],
    Markup('<b>\ud800</b>'), [Markup('a'), 'a'], {'a': Markup('')},
    Point(1), Point(1, Point(2, [3])), Empty(), LooseChild(1, 2), [Point(1), Point(2)],
    [Point(1), (1, None)], {Point(1): Point(2)}, {Point(1, 2), Point(3, 4)},
    Node('a'), Node('a', [Node('b', [Node('c')]), Node('d')]), [Node('a'), Node('b')],
    Money(Decimal('1.0')), {Money(Decimal(1)): 1}, Slotted((1, 2)), [Slotted(1), Slotted([])],
    rows((1, 'a')), rows((1, 'a'), (2, 'b')), rows((1, 'a'))[0], tuple(rows((1, (2, 3)))),
    [*rows((1, 'a')), *rows((2, 'b'), keys=('nr', 'label'))], {'rows': rows((1, [2]))},
    rows((1, 'a'), keys=(quoted_name('id', quote=True), 'name')),
    [*rows((1, 'a')), (1, 'a')], [*rows((1, 'a')), *rows((2, 'b'))], rows((), keys=()),
    set(rows((1, 'a'), (2, 'b'))), rows((datetime(2024, 1, 1), Color.RED), (None, '\ud800')),
]  # fmt: skip

IMMUTABLE: list[object] = [
    None, True, 2**70, 1.5, '', '\ud800', b'', (), (1, (2, 'x')), ((1, 2), (3, 4)),
    frozenset({1, (2,)}), datetime(2024, 1, 1, tzinfo=ZURICH), date(2024, 1, 1), time(),
    timedelta(), Decimal(1), uuid.UUID(int=1), Color.RED, Right.BOTH, Markup(''),
    rows((1, 'a'))[0], tuple(rows((1, 'a'), (2, (3,)))), Point(1, (2,)), (Point(1), Point(2)),
    Money(Decimal(1)), (Money(Decimal(1), 'x'),), Slotted(Point(1)),
]  # fmt: skip

MUTABLE: list[object] = [
    [], {}, set(), ([],), ((1, {}),), ((1, [2]), (3, 4)), (set(),), rows((1, []))[0],
    tuple(rows((1, 'a'), (2, {}))), Point(1, []), (Point(1), Point(2, {})), Node('a'),
    (Node('a'),), Money(Decimal(1), [1]), Slotted({}), ({1: 2},), (({1: 'x'}, '\ud800'),),
    Point(1, Node('a')), Box(1), (Box(1), Box(2)),
]  # fmt: skip


@pytest.mark.parametrize('value', VALUES, ids=lambda value: type(value).__name__)
def test_a_value_comes_back_exactly(serializer: Serializer, value: object) -> None:
    """A value of every kind comes back equal and with the same types at every depth."""
    assert form(serializer.decode(serializer.encode(value).data)) == form(value)


@pytest.mark.parametrize('value', VALUES, ids=lambda value: type(value).__name__)
def test_a_value_comes_back_exactly_beside_text_that_is_no_utf8(
    serializer: Serializer, value: object
) -> None:
    """The slower way, taken for lone surrogates and large integers, is as exact."""
    both = [value, {'also': value}, '\ud800', 2**70]
    assert form(serializer.decode(serializer.encode(both).data)) == form(both)


@pytest.mark.parametrize('value', IMMUTABLE, ids=lambda value: type(value).__name__)
def test_an_immutable_value_may_be_shared(serializer: Serializer, value: object) -> None:
    """A value of which no part can be changed is said to be immutable."""
    assert serializer.encode(value).immutable


@pytest.mark.parametrize('value', MUTABLE, ids=lambda value: type(value).__name__)
def test_a_mutable_value_may_not_be_shared(serializer: Serializer, value: object) -> None:
    """A value is mutable as soon as one part of it is, however deep."""
    assert not serializer.encode(value).immutable
    assert form(serializer.decode(serializer.encode(value).data)) == form(value)


def test_each_decoding_makes_a_value_of_its_own(serializer: Serializer) -> None:
    """What one reader does to a mutable value, another does not see."""
    data = serializer.encode({'a': [1]}).data
    serializer.decode(data)['a'].append(2)
    assert serializer.decode(data) == {'a': [1]}


def test_rows_of_a_query_come_back_as_rows(serializer: Serializer) -> None:
    """Rows are real rows: by attribute, index and mapping, as of the ORM and of Core."""
    engine = create_engine('sqlite://')
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all([User(id=1, name='Ada'), User(id=2, name='Bob')])
        session.flush()
        original = session.query(User.id, User.name.label('called')).order_by(User.id).all()
        core = session.execute(text('SELECT id, name FROM users ORDER BY id')).first()
    decoded = serializer.decode(serializer.encode(original).data)
    assert form(decoded) == form(original)
    assert decoded[1].called == decoded[1][1] == decoded[1]._mapping['called'] == 'Bob'
    assert [row._asdict() for row in decoded] == [row._asdict() for row in original]
    assert serializer.decode(serializer.encode(core).data).name == 'Ada'


def test_rows_of_one_query_share_their_keys(serializer: Serializer) -> None:
    """A list of rows has their keys once, however many there are."""
    many = rows(*[(number, 'x') for number in range(30_000)], keys=('identifier', 'name'))
    data = serializer.encode(many).data
    assert data.count(b'identifier') == 1
    assert len(data) < 30_000 * 7


def test_instances_of_one_class_share_its_name(serializer: Serializer) -> None:
    """A list of registered instances has their class and fields once."""
    data = serializer.encode([Point(number) for number in range(1000)]).data
    assert data.count(b'Point') == 1


def test_a_cached_property_of_a_dataclass_is_computed_again(serializer: Serializer) -> None:
    """What a cached property computed from the fields is no reason to refuse, nor kept."""
    node = Node('a')
    assert node.label == '<a>'
    decoded = serializer.decode(serializer.encode(node).data)
    assert decoded == node
    assert 'label' not in vars(decoded)


def test_a_dataclass_comes_back_without_running_its_code(serializer: Serializer) -> None:
    """A field that __post_init__ sets keeps the value it had when it was encoded."""
    slotted = Slotted(1)
    object.__setattr__(slotted, 'total', 7)
    assert serializer.decode(serializer.encode(slotted).data).total == 7


def test_the_first_byte_is_the_version(serializer: Serializer) -> None:
    """The format's version is the first byte, and another one is a miss."""
    data = serializer.encode('x').data
    assert data[0] == VERSION
    with pytest.raises(UndecodableValue, match='format 2'):
        serializer.decode(bytes([VERSION + 1]) + data[1:])


def test_an_enum_defined_in_a_function_can_be_registered() -> None:
    """An enum class that no module has is refused, unless it is registered."""
    local = enum.Enum('local', 'A B')
    local.__qualname__ = 'somewhere.<locals>.local'
    with pytest.raises(ValueNotCacheable, match=r'value\[0\] is .*not found by this name'):
        Serializer().encode([local.A])
    serializer = Serializer([local])
    assert serializer.decode(serializer.encode(local.B).data) is local.B


# refusals


def generator() -> Iterator[int]:
    yield 1


async def coroutine() -> int:
    return 1


async def async_generator() -> Any:
    yield 1


class Text(str):
    __slots__ = ()


def orm_query() -> Any:
    return Session().query(User.id)


def unfetched() -> Any:
    return IteratorResult(SimpleResultMetaData(['a']), iter([]))


def extra_attribute() -> object:
    node = Node('a')
    node.extra = 1  # type: ignore[attr-defined]
    return node


def loose_attribute() -> object:
    loose = LooseChild(1, 2)
    loose.extra = 1  # type: ignore[attr-defined]
    return loose


def keyless_zone() -> datetime:
    header = b'TZif' + b'\0' * 16 + struct.pack('>6l', 0, 0, 0, 0, 1, 4)
    tables = io.BytesIO(header + struct.pack('>lbb', 0, 0, 0) + b'UTC\0')
    return datetime(2024, 1, 1, tzinfo=ZoneInfo.from_file(tables))


REFUSED: list[tuple[Callable[[], object], str]] = [
    (lambda: User(id=1), "User, and ORM objects can't be cached"),
    (lambda: DataUser(id=1), "DataUser, and ORM objects can't be cached"),
    (lambda: User, "class .*User, and ORM objects can't be cached"),
    (lambda: User().staff, "InstrumentedList, and ORM objects can't be cached"),
    (orm_query, 'Query, a query that has not been run.*all'),
    (lambda: select(User), 'Select, a query that has not been run'),
    (lambda: text('SELECT 1'), 'TextClause, a query that has not been run'),
    (unfetched, 'IteratorResult, a result that has not been fetched'),
    (lambda: unfetched().scalars(), 'ScalarResult, a result that has not been fetched'),
    (lambda: rows((1, 'a'))[0]._mapping, r'RowMapping, the mapping of a row.*dict\(\.\.\.\)'),
    (generator, 'generator, which can be read only by iterating.*list or a tuple'),
    (lambda: iter([]), 'list_iterator, which can be read only by iterating'),
    (lambda: map(str, []), 'map, which can be read only by iterating'),
    (lambda: {}.keys(), 'dict_keys, which can be read only by iterating'),
    (lambda: range(3), 'range, which can be read only by iterating'),
    (async_generator, 'async_generator, which can be read only by iterating'),
    (lambda: generator, 'function, which is code and no value'),
    (lambda: coroutine, 'function, which is code and no value'),
    (lambda: print, 'builtin_function_or_method, which is code'),
    (lambda: Node, 'class .*Node, which is code'),
    (lambda: bytearray(b'x'), r'bytearray, which is a buffer. Convert it with bytes\('),
    (lambda: memoryview(b'x'), 'memoryview, which is a buffer'),
    (lambda: Text('x'), r'Text, a subclass of str.*str\(\.\.\.\)'),
    (lambda: collections.OrderedDict(), r'OrderedDict, a subclass of dict.*dict\(\.\.\.\)'),
    (lambda: collections.defaultdict(list), 'defaultdict, a subclass of dict'),
    (lambda: collections.Counter(), 'Counter, a subclass of dict'),
    (lambda: collections.deque(), "deque, a kind that can't be cached"),
    (lambda: Unregistered(1), r'Unregistered, .*not registered.*`types` of the .*`orm_cache`'),
    (lambda: UnregisteredData(1), r'UnregisteredData, .*not registered.*`types` of the'),
    (lambda: Loose(1, 2), 'Loose, .*not registered'),
    (object, "object, a kind that can't be cached"),
    (lambda: 1j, "complex, a kind that can't be cached"),
    (lambda: Ext(1, b''), "Ext, a kind that can't be cached"),
    (lambda: Fragment(b'\x01'), "Fragment, a kind that can't be cached"),
    (lambda: datetime(2024, 1, 1, tzinfo=Zone()), r'time zone .*Zone.*Use zoneinfo'),
    (lambda: time(1, tzinfo=Zone()), r'time zone .*Zone.*Use zoneinfo'),
    (keyless_zone, r'time zone .*Use zoneinfo'),
    (lambda: Open(7), 'Open.UNKNOWN: 7>, no member of .*Open by its name'),
    (extra_attribute, "attribute 'extra' that is no field"),
    (loose_attribute, "attribute 'extra' that is no field"),
    (Unset, 'a field of it has no value .*Give each field a value'),
    (lambda: rows((1, 2), keys=('id', 'id'))[0], r"columns are called \['id', 'id'\].*label"),
]

#: Where a part can stand, and how the message says so.
PLACES: list[tuple[Callable[[Any], object], str]] = [
    (lambda part: part, 'users'),
    (lambda part: [1, 2, part], 'users[2]'),
    (lambda part: (1, part), 'users[1]'),
    (lambda part: [(1, 2), (3, part)], 'users[1][1]'),
    (lambda part: {'owner': part}, "users['owner']"),
    (lambda part: {1: 'x', (1, 2): part}, 'users[(1, 2)]'),
    (lambda part: [{'ch': [part]}], "users[0]['ch'][0]"),
    (lambda part: [1, '\ud800', part], 'users[2]'),
    (lambda part: Point(1, part), 'users.y'),
    (lambda part: [Point(1), Point(2, part)], 'users[1].y'),
    (lambda part: Node('a', [part]), 'users.children[0]'),
    (lambda part: {'ch': Node('a', [Node('b'), part])}, "users['ch'].children[1]"),
    (lambda part: Money(Decimal(1), part), 'users.note'),
    (lambda part: Slotted(part), 'users.a'),
    (lambda part: rows((1, part))[0], 'users.name'),
    (lambda part: rows((1, 2), (3, part)), 'users[1].name'),
    (lambda part: [*rows((1, 2)), *rows((part, 2), keys=('a', 'b'))], 'users[1].a'),
]


@pytest.mark.parametrize(('make', 'message'), REFUSED)
def test_a_refusal_says_what_it_found_and_what_to_do(
    serializer: Serializer, make: Callable[[], object], message: str
) -> None:
    """What can't come back exactly is refused with its type and advice, at any depth."""
    for value, place in ((make(), 'users'), ([{'a': make()}], r"users\[0\]\['a'\]")):
        pattern = f"^users can't be cached: {place} .*{message}"
        with pytest.raises(ValueNotCacheable, match=pattern):
            serializer.encode(value, 'users')


@pytest.mark.parametrize(('wrap', 'place'), PLACES)
def test_a_refusal_names_the_place(
    serializer: Serializer, wrap: Callable[[Any], object], place: str
) -> None:
    """The message names where in the value the part is that can't be cached."""
    for part in (bytearray(), User(id=1)):
        with pytest.raises(ValueNotCacheable) as refusal:
            serializer.encode(wrap(part), 'users')
        assert str(refusal.value).startswith(f"users can't be cached: {place} is of type")
    serializer.encode(wrap(1), 'users')


@pytest.mark.parametrize(
    ('value', 'place'),
    [
        ([1, {'x': 1, Text('y'): 2}], "key 'y' of users[1]"),
        ({(1, Text('x')): 2}, "(key (1, 'x') of users)[1]"),
        ({10**5000: bytearray()}, 'users[<int>]'),
        ({Unregistered(1): 2}, 'key Unregistered(a=1) of users'),
        ({1, Text('x')}, "users{'x'}"),
        (frozenset({(1, Text('x'))}), "users{(1, 'x')}[1]"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_key_or_member(
    serializer: Serializer, value: object, place: str
) -> None:
    """Keys and members of sets are named by what they look like."""
    with pytest.raises(ValueNotCacheable) as refusal:
        serializer.encode(value, 'users')
    assert str(refusal.value).startswith(f"users can't be cached: {place} is of type")


def test_an_object_whose_repr_fails_is_refused_all_the_same(serializer: Serializer) -> None:
    """The search for the place survives objects that can't be shown."""

    class Shy:
        def __repr__(self) -> str:
            raise RuntimeError

    with pytest.raises(ValueNotCacheable, match=r'value\{<.*Shy.*>\} is of type'):
        serializer.encode({Shy()})


def test_a_row_with_an_orm_object_is_refused(serializer: Serializer) -> None:
    """Rows of a query for whole entities hold ORM objects."""
    with pytest.raises(ValueNotCacheable, match=r'users\[0\]\.User is .*ORM objects'):
        serializer.encode(rows((User(id=1),), keys=('User',)), 'users')


def test_a_class_that_was_mapped_after_it_was_registered_is_refused() -> None:
    """Imperative mapping turns instances into ORM objects at any time."""
    late = make_dataclass('late', ['id'])
    serializer = Serializer([late])
    serializer.encode(late(1))
    orm = registry()
    orm.map_imperatively(late, Base.metadata.tables['users'].to_metadata(orm.metadata))
    with pytest.raises(ValueNotCacheable, match='ORM objects'):
        serializer.encode(late(1))


def test_a_circular_value_is_refused(serializer: Serializer) -> None:
    """A value that contains itself is refused as such, with the place."""
    tree: dict[str, Any] = {'children': []}
    tree['children'].append((1, tree))
    with pytest.raises(ValueNotCacheable, match=r"tree\['children'\]\[0\]\[1\] contains itself"):
        serializer.encode(tree, 'tree')
    node = Node('a')
    node.children.append(node)
    with pytest.raises(ValueNotCacheable, match=r'tree\.children\[0\] contains itself'):
        serializer.encode(node, 'tree')


def test_a_part_may_occur_twice(serializer: Serializer) -> None:
    """A part in two places is no circle."""
    part = [1]
    assert serializer.decode(serializer.encode([part, {'a': part}]).data) == [[1], {'a': [1]}]
    with pytest.raises(ValueNotCacheable, match=r'value\[2\] is of type bytearray'):
        serializer.encode([part, part, bytearray()])


@pytest.mark.parametrize(
    ('wrap', 'levels'),
    [
        (lambda value: [value], 1),
        (lambda value: (value,), 1),
        (lambda value: {'a': value}, 1),
        (lambda value: {1: value}, 1),
        (lambda value: {(value,): 1} if value == 1 else [value], 1),
        (lambda value: frozenset({value}), 1),
        (lambda value: Point(1, value), 1),
        (lambda value: Node('a', value), 1),
        (lambda value: rows((1, value))[0], 1),
        (lambda value: [(1, value)], 2),
        (lambda value: rows((1, value)), 2),
        (lambda value: [{'a': value, 'b': 1}], 2),
    ],
)
def test_depth_has_a_limit(
    serializer: Serializer, wrap: Callable[[Any], Any], levels: int
) -> None:
    """What is nested up to the limit comes back; what is nested deeper is refused."""
    deep = nested(MAX_DEPTH // levels - 1, wrap)
    assert form(serializer.decode(serializer.encode(deep).data)) == form(deep)
    for too_many in (MAX_DEPTH // levels + 1, 10 * MAX_DEPTH):
        with pytest.raises(ValueNotCacheable, match=f'nested too deeply.* {MAX_DEPTH} levels'):
            serializer.encode(nested(too_many, wrap))


def at_the_end_of_the_stack(call: Callable[[], object]) -> object:
    """Call with so little stack left that the value's recursion must fail."""
    frame, depth = sys._getframe(), 0
    while frame is not None:
        frame, depth = frame.f_back, depth + 1  # type: ignore[assignment]

    def descend(left: int) -> object:
        return call() if left <= 0 else descend(left - 1)

    return descend(sys.getrecursionlimit() - depth - 60)


def test_a_full_stack_is_no_other_error(serializer: Serializer) -> None:
    """With too little stack left a value is refused, or is a miss; nothing else is raised."""
    deep = nested(MAX_DEPTH, lambda value: (value,))
    data = serializer.encode(deep).data
    with pytest.raises(ValueNotCacheable, match='nested too deeply'):
        at_the_end_of_the_stack(lambda: serializer.encode(deep))
    with pytest.raises(UndecodableValue):
        at_the_end_of_the_stack(lambda: serializer.decode(data))


# what is registered


@pytest.mark.parametrize(
    ('cls', 'message'),
    [
        (User, 'User is mapped'),
        (DataUser, 'DataUser is mapped'),
        (dict, 'no NamedTuple, dataclass or Enum'),
        (Point(1), 'no class'),
        (Node('a'), 'no class'),
        ('Node', 'no class'),
        (make_dataclass('Special', ['a'], bases=(dict,)), 'no NamedTuple, dataclass or Enum'),
    ],
)
def test_only_plain_classes_can_be_registered(cls: Any, message: str) -> None:
    """Mapped classes and all but NamedTuple, dataclass and Enum classes are refused."""
    with pytest.raises(ConfigurationError, match=message):
        Serializer([cls])


def test_two_registered_classes_of_one_name_are_refused() -> None:
    """A stored name stands for one class; the same class may be named twice."""
    first, second = make_dataclass('Twin', ['a']), make_dataclass('Twin', ['a'])
    with pytest.raises(ConfigurationError, match=r'two classes have the name .*Twin'):
        Serializer([first, second])
    Serializer([first, first])


@pytest.mark.parametrize('value', [Point(1), [Point(1), Point(2)], Money(Decimal(1)), Node('a')])
def test_a_class_that_is_not_registered_is_not_decoded(
    serializer: Serializer, value: object
) -> None:
    """Another release's class is a miss, also if its module is imported."""
    with pytest.raises(UndecodableValue, match=r'KeyError.*:(Point|Money|Node)'):
        Serializer().decode(serializer.encode(value).data)


@pytest.mark.parametrize('names', [['a'], ['a', 'b', 'c'], ['b', 'a'], ['a', 'x']])
@pytest.mark.parametrize('make', [make_dataclass, collections.namedtuple])
def test_a_class_whose_fields_have_changed_is_a_miss(make: Any, names: list[str]) -> None:
    """Fields added, removed, renamed or reordered since make the stored value a miss."""
    old, new = make('Changing', ['a', 'b']), make('Changing', names)
    new.__module__ = old.__module__
    data = Serializer([old]).encode(old(1, 2)).data
    assert Serializer([old]).decode(data) == old(1, 2)
    with pytest.raises(UndecodableValue, match='Changing has other fields'):
        Serializer([new]).decode(data)


@pytest.mark.parametrize(
    'content',
    [
        ['this', 's', 'ZEN'],
        ['this.that', 'Color', 'RED'],
        ['no_such_module_anywhere', 'Color', 'RED'],
        [__name__, 'NoColor', 'RED'],
        [__name__, 'Point', 'RED'],
        [__name__, 'Color', 'GREEN'],
        [__name__, 'Color.RED', 'RED'],
        [__name__, 'Right', 'RED'],
        [__name__, 'Right', 'ff'],
        [__name__, 'Ejecting', 'ff'],
        [__name__, 'Open', 'UNKNOWN'],
        [__name__, 'NoEnum', 'RED'],
        [__name__, 'holder.Color', 'RED'],
        [__name__, '', ''],
        [__name__, 'pytest.fixture', 'x'],
        [1, 2, 3],
        [[], [], []],
        [],
        'abc',
    ],
)
def test_an_enum_member_that_is_not_there_is_a_miss(
    serializer: Serializer, content: object
) -> None:
    """A wrong module, class or member is a miss, and no module is imported to look for it."""
    imported = set(sys.modules)
    with pytest.raises(UndecodableValue):
        serializer.decode(framed(packb(Ext(7, packb(content)))))
    assert set(sys.modules) == imported


def test_an_enum_that_was_renamed_in_its_module_is_refused(
    serializer: Serializer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An enum class is only encoded if it is found again under its name."""
    red = Color.RED
    monkeypatch.setattr(sys.modules[__name__], 'Color', Level)
    with pytest.raises(ValueNotCacheable, match=r'value\[0\] .*Color is not found by this name'):
        serializer.encode([red])


# bytes that are no value


@pytest.mark.parametrize(
    'data',
    [
        b'',
        b'\x01',
        framed(b''),
        framed(b'\xc1'),
        framed(b'\x01') + b'\x01',
        framed(b'\x92\x01\x02')[:-1],
        framed(b'\xdd\xff\xff\xff\xff'),
        framed(b'\x81\x01\x02'),
        framed(packb(Ext(99, b''))),
        framed(packb(Ext(3, b''))),
        framed(packb(Ext(3, packb(1)))),
        framed(packb(Ext(4, packb([[]])))),
        framed(packb(Ext(6, packb([[1, 2], [1]])))),
        framed(packb(Ext(6, packb([[[]], [1]])))),
        framed(packb(Ext(8, packb([['a'], []])))),
        framed(packb(Ext(9, packb([[]])))),
        framed(packb(Ext(11, packb([['a', 'b'], [[1]]])))),
        framed(packb(Ext(11, packb([['a', 'a'], [[1, 2]]])))),
        framed(packb(Ext(11, packb([[1], [[1]]])))),
        framed(packb(Ext(12, packb([f'{__name__}:Point', ['x', 'y'], [[1]]])))),
        framed(packb(Ext(12, packb([f'{__name__}:Node', ['name'], [['x']]])))),
        framed(packb(Ext(20, b'02024-13-01T00:00:00 '))),
        framed(packb(Ext(20, b'22024-01-01T00:00:00 '))),
        framed(packb(Ext(20, b'02024-01-01T00:00:00 zNo/Where'))),
        framed(packb(Ext(20, b'02024-01-01T00:00:00 z../../etc/passwd'))),
        framed(packb(Ext(20, b'02024-01-01T00:00:00 x'))),
        framed(packb(Ext(20, b'02024-01-01T00:00:00 o999999999999'))),
        framed(packb(Ext(20, b''))),
        framed(packb(Ext(23, b'123'))),
        framed(packb(Ext(24, b'x'))),
        framed(packb(Ext(25, b'123'))),
        framed(packb(Ext(26, b'\xff'))),
    ],
)
def test_malformed_bytes_are_a_miss(serializer: Serializer, data: bytes) -> None:
    """Bytes that are cut off, too long or make no sense raise UndecodableValue."""
    with pytest.raises(UndecodableValue):
        serializer.decode(data)


def test_bytes_nested_without_end_are_a_miss(serializer: Serializer) -> None:
    """Containers and extensions nested deeper than any value raise UndecodableValue."""
    body = b'\x90'
    for _ in range(3000):
        body = packb(Ext(3, body))
    for deep in (body, b'\x91' * 100_000 + b'\x90'):
        with pytest.raises(UndecodableValue):
            serializer.decode(framed(deep))


def test_an_interrupt_while_decoding_is_no_miss(serializer: Serializer) -> None:
    """Ctrl-C or a worker's exit in a reader of an extension reaches the caller."""
    member = packb(Ext(7, packb([__name__, 'Wired', '8'])))
    with pytest.raises(KeyboardInterrupt):
        serializer.decode(framed(member))
    with pytest.raises(KeyboardInterrupt):
        serializer.decode(framed(b'\x91' + packb(Ext(3, b'\x91' + member))))


def test_an_error_says_why_the_bytes_are_no_value(serializer: Serializer) -> None:
    """The cause that ormsgpack drops is in the message and chained."""
    with pytest.raises(UndecodableValue, match='has other fields now') as error:
        serializer.decode(framed(packb(Ext(12, packb([f'{__name__}:Point', ['x'], [[1]]])))))
    assert isinstance(error.value.__cause__, ValueError)


# properties

TEXTS = st.text(st.characters(exclude_categories=()))
ZONES = st.one_of(
    st.none(),
    st.sampled_from([UTC, ZURICH, ZoneInfo('America/St_Johns')]),
    st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(timezone),
    st.builds(timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23)), TEXTS),
)
FOLDS = st.sampled_from([0, 1])
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**66), 2**66),
    st.floats(),
    TEXTS,
    st.binary(),
    st.builds(lambda t, z, f: t.replace(tzinfo=z, fold=f), st.datetimes(), ZONES, FOLDS),
    st.builds(lambda t, z, f: t.replace(tzinfo=z, fold=f), st.times(), ZONES, FOLDS),
    st.dates(),
    st.timedeltas(),
    st.decimals().filter(lambda number: not number.is_snan()),
    st.uuids(),
    st.sampled_from([*Color, *Level, *Mood, *Right, Right(0), Bits.A | Bits.B, Outer.Inner.X]),
    TEXTS.map(Markup),
)
KEYS = st.recursive(
    LEAVES,
    lambda parts: st.one_of(
        st.lists(parts, max_size=3).map(tuple),
        st.frozensets(parts, max_size=3),
        st.builds(Point, parts, parts),
        st.builds(Slotted, parts),
        st.tuples(parts, parts).map(lambda pair: rows(pair)[0]),
    ),
    max_leaves=4,
)


def containers(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.lists(parts),
        st.lists(parts).map(tuple),
        st.lists(st.tuples(parts, parts)),
        st.lists(st.tuples(parts, parts)).map(lambda pairs: rows(*pairs)),
        st.lists(st.builds(Point, parts, parts)),
        st.dictionaries(TEXTS, parts),
        st.dictionaries(KEYS, parts),
        st.sets(KEYS),
        st.frozensets(KEYS),
        st.builds(Point, parts, parts),
        st.builds(Money, st.just(Decimal(1)), parts),
        st.builds(Node, TEXTS, st.lists(parts)),
    )


ANY_VALUE = st.recursive(st.one_of(LEAVES, KEYS), containers, max_leaves=20)


@examples(300)
@given(ANY_VALUE)
def test_any_value_comes_back_exactly(value: object) -> None:
    """Whatever is made of the supported kinds comes back with every type and detail."""
    serializer = Serializer(TYPES)
    assert form(serializer.decode(serializer.encode(value).data)) == form(value)


@examples(300)
@given(ANY_VALUE)
def test_no_other_object_hides_in_any_value(value: object) -> None:
    """Beside any value, a part that can't be cached is found."""
    with pytest.raises(ValueNotCacheable, match=r'value\[1\]\[0\] is of type bytearray'):
        Serializer(TYPES).encode([value, (bytearray(b'x'),)])


@examples(500)
@given(st.one_of(st.binary(), st.binary().map(framed)))
def test_arbitrary_bytes_are_a_value_or_a_miss(data: bytes) -> None:
    """No bytes raise anything but UndecodableValue."""
    decode_or_miss(data)


@examples(500)
@given(ANY_VALUE, st.data())
def test_damaged_bytes_are_a_value_or_a_miss(value: object, data: st.DataObject) -> None:
    """A value's bytes, cut off or with some changed, raise nothing but UndecodableValue."""
    original = Serializer(TYPES).encode(value).data
    cut = data.draw(st.integers(0, len(original) - 1))
    with pytest.raises(UndecodableValue):
        Serializer(TYPES).decode(original[:cut])
    damaged = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(9, len(original) - 1))
        damaged[place] = data.draw(st.integers(0, 255))
    decode_or_miss(bytes(damaged))
    decode_or_miss(framed(original[9:cut]))


def decode_or_miss(data: bytes) -> None:
    serializer = Serializer(TYPES)
    try:
        value = serializer.decode(data)
    except UndecodableValue:
        return
    serializer.encode(value)  # it is of the supported kinds


@pytest.mark.parametrize('enabled', [True, False])
def test_collector_is_left_as_it_was(enabled: bool) -> None:
    """Decoding a large value leaves the garbage collector as it was, also after an error."""
    serializer = Serializer()
    large = serializer.encode([{'number': n} for n in range(20_000)]).data
    assert len(large) > LARGE
    was_enabled = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        assert len(serializer.decode(large)) == 20_000
        assert gc.isenabled() is enabled
        with pytest.raises(UndecodableValue):
            serializer.decode(large[:9] + b'\xc1' * (len(large) - 9))
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if was_enabled else gc.disable)()
