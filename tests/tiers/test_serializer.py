"""The serializer gives every value back exactly as it was.

test_refusals.py tests the values that it refuses, test_decoding.py what it makes of damaged
bytes.
"""

from __future__ import annotations

import gc
import sys
import uuid
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from ipaddress import ip_address, ip_interface, ip_network
from zoneinfo import ZoneInfo

import pytest
from frozendict import frozendict
from hypothesis import given
from markupsafe import Markup
from psycopg.types.multirange import Int4Multirange, Multirange
from psycopg.types.range import DateRange
from psycopg.types.range import Range as PsycopgRange
from sqlalchemy import create_engine, text
from sqlalchemy.dialects.postgresql import MultiRange, Range
from sqlalchemy.orm import Session
from sqlalchemy.sql import quoted_name

from onegov_ormcache.errors import UndecodableValue
from onegov_ormcache.tiers.frozen import freeze
from onegov_ormcache.tiers.ranges import psycopg_ranges
from onegov_ormcache.tiers.serializer import LARGE, VERSION, Serializer
from tests.support.examples import examples
from tests.tiers.serializable import (
    TYPES,
    ZURICH,
    Base,
    Bits,
    BitString,
    Box,
    Color,
    Empty,
    Level,
    LooseChild,
    Money,
    Mood,
    Node,
    Outer,
    Point,
    Right,
    Slotted,
    User,
    form,
    rows,
)
from tests.tiers.strategies import ANY_VALUE

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
    ip_address('10.0.0.1'), ip_address('fe80::1%eth0'), ip_address('::ffff:10.0.0.1'),
    ip_interface('10.0.0.1/8'), ip_interface('10.0.0.1'), ip_interface('fe80::1/64'),
    ip_network('10.0.0.0/8'), ip_network('::/0'), BitString(''), BitString('0101'),
    [BitString('1'), '1'], {ip_address('::1'): ip_network('::1')},
    Range(1, 3), Range(None, Decimal('1.50'), bounds='(]'), Range(empty=True), Range([1], None),
    [Range(1, 2), Range(date(2024, 1, 1), None)], {Range(1, 2)}, MultiRange(),
    MultiRange([Range(1, 3), Range(5, None)]), [MultiRange([Range(1, 2)]), []],
    PsycopgRange(1, 3), PsycopgRange(None, Decimal('1.50'), '(]'), PsycopgRange(empty=True),
    PsycopgRange(float('nan'), [1]), DateRange(date(2024, 1, 1), None), Multirange(),
    Multirange([PsycopgRange(1, 3), PsycopgRange(5, None)]), Multirange[int]([PsycopgRange(1)]),
    Int4Multirange([PsycopgRange(1)]), [PsycopgRange(1, 2), Range(1, 2)],
    Markup('<b>\ud800</b>'), [Markup('a'), 'a'], {'a': Markup('')},
    Point(1), Point(1, Point(2, [3])), Empty(), LooseChild(1, 2), [Point(1), Point(2)],
    [Point(1), (1, None)], {Point(1): Point(2)}, {Point(1, 2), Point(3, 4)},
    Node('a'), Node('a', [Node('b', [Node('c')]), Node('d')]), [Node('a'), Node('b')],
    Money(Decimal('1.0')), {Money(Decimal(1)): 1}, Slotted((1, 2)), [Slotted(1), Slotted([])],
    rows((1, 'a')), rows((1, 'a'), (2, 'b')), rows((1, 'a'))[0], tuple(rows((1, (2, 3)))),
    [*rows((1, 'a')), *rows((2, 'b'), keys=('nr', 'label'))], {'rows': rows((1, [2]))},
    rows((1, 'a'), keys=(quoted_name('id', quote=True), 'name')),
    [*rows((1, 'a')), (1, 'a')], [*rows((1, 'a')), *rows((2, 'b'))], rows((), keys=()),
    rows((1, [2]))[0]._mapping, [row._mapping for row in rows((1, 'a'), (2, 'b'))],
    [rows((1, 'a'))[0], rows((1, 'a'))[0]._mapping, rows((1, 2), keys=('a', 'b'))[0]._mapping],
    set(rows((1, 'a'), (2, 'b'))), rows((datetime(2024, 1, 1), Color.RED), (None, '\ud800')),
]  # fmt: skip

IMMUTABLE: list[object] = [
    None, True, 2**70, 1.5, '', '\ud800', b'', (), (1, (2, 'x')), ((1, 2), (3, 4)),
    frozenset({1, (2,)}), datetime(2024, 1, 1, tzinfo=ZURICH), date(2024, 1, 1), time(),
    timedelta(), Decimal(1), uuid.UUID(int=1), Color.RED, Right.BOTH, Markup(''),
    rows((1, 'a'))[0], tuple(rows((1, 'a'), (2, (3,)))), Point(1, (2,)), (Point(1), Point(2)),
    Money(Decimal(1)), (Money(Decimal(1), 'x'),), Slotted(Point(1)), rows((1, 'a'))[0]._mapping,
    ip_address('::1'), ip_interface('::1'), ip_network('::'), BitString('1'),
    Range(1, 2), PsycopgRange(1, 2), rows((1, Range(1, 2)))[0],
]  # fmt: skip

MUTABLE: list[object] = [
    [], {}, set(), ([],), ((1, {}),), ((1, [2]), (3, 4)), (set(),), rows((1, []))[0],
    tuple(rows((1, 'a'), (2, {}))), Point(1, []), (Point(1), Point(2, {})), Node('a'),
    (Node('a'),), Money(Decimal(1), [1]), Slotted({}), ({1: 2},), (({1: 'x'}, '\ud800'),),
    Point(1, Node('a')), Box(1), (Box(1), Box(2)), rows((1, []))[0]._mapping, MultiRange(),
    Multirange(), (MultiRange([Range(1, 2)]),), Range([1], None), PsycopgRange([1], None),
]  # fmt: skip


@pytest.mark.parametrize('value', VALUES, ids=lambda value: type(value).__name__)
def test_a_value_comes_back_exactly(serializer: Serializer, value: object) -> None:
    """A value of every kind comes back equal and with the same types at every depth."""
    assert form(serializer.decode(serializer.encode(value).data)) == form(value)


@pytest.mark.parametrize('value', VALUES, ids=lambda value: type(value).__name__)
def test_a_value_comes_back_exactly_beside_text_that_is_no_utf8(
    serializer: Serializer, value: object
) -> None:
    """The slower encoding, used for lone surrogates and large integers, is as exact."""
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
    """A reader does not see changes that another reader makes to a mutable value."""
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
    """A dataclass with a computed cached property is not refused, and the result is not kept."""
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


def test_psycopg_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without psycopg all else comes back, and a stored value of its classes is a miss."""
    data = Serializer().encode([PsycopgRange(1, 2)]).data
    others = [Range(1, 2), MultiRange([Range(1, 2)]), (ip_address('::1'), BitString('1'))]
    psycopg_ranges.cache_clear()
    monkeypatch.setitem(sys.modules, 'psycopg.types', None)
    try:
        serializer = Serializer()
        assert form(serializer.decode(serializer.encode(others).data)) == form(others)
        assert freeze([Range(1, 2)], 'users') == (Range(1, 2),)
        with pytest.raises(UndecodableValue, match='psycopg'):
            serializer.decode(data)
    finally:
        psycopg_ranges.cache_clear()


def test_the_first_byte_is_the_version(serializer: Serializer) -> None:
    """The first byte is the version of the format, and data of another version is a miss."""
    data = serializer.encode('x').data
    assert data[0] == VERSION
    with pytest.raises(UndecodableValue, match=f'format {VERSION + 1}'):
        serializer.decode(bytes([VERSION + 1]) + data[1:])


@examples(300)
@given(ANY_VALUE)
def test_any_value_comes_back_exactly(value: object) -> None:
    """A value made of the supported kinds comes back with every type and detail."""
    serializer = Serializer(TYPES)
    assert form(serializer.decode(serializer.encode(value).data)) == form(value)


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
