"""The serializer refuses a value that would not come back exactly, and names the place in it."""

from __future__ import annotations

import collections
import io
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import make_dataclass
from datetime import datetime, time
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from ormsgpack import Ext, Fragment
from psycopg.types.json import Jsonb
from psycopg.types.multirange import Multirange
from psycopg.types.range import Int4Range
from psycopg.types.range import Range as PsycopgRange
from sqlalchemy import select, text
from sqlalchemy.dialects.postgresql import MultiRange, Range
from sqlalchemy.engine import IteratorResult
from sqlalchemy.engine.result import SimpleResultMetaData
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import Session, registry

from onegov_ormcache.errors import ValueNotCacheable
from onegov_ormcache.tiers.refusals import MAX_DEPTH
from onegov_ormcache.tiers.serializer import Serializer
from tests.support.examples import examples
from tests.tiers.serializable import (
    TYPES,
    Base,
    BitString,
    DataUser,
    Loose,
    LooseChild,
    Money,
    Node,
    Open,
    Point,
    Slotted,
    Unregistered,
    UnregisteredData,
    Unset,
    User,
    Zone,
    form,
    rows,
)
from tests.tiers.strategies import ANY_VALUE


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


def with_attribute(value: Any) -> object:
    value.extra = 1
    return value


def keyless_zone() -> datetime:
    header = b'TZif' + b'\0' * 16 + struct.pack('>6l', 0, 0, 0, 0, 1, 4)
    tables = io.BytesIO(header + struct.pack('>lbb', 0, 0, 0) + b'UTC\0')
    return datetime(2024, 1, 1, tzinfo=ZoneInfo.from_file(tables))


BIT_STRINGS: list[tuple[Callable[[], object], str]] = [
    (lambda: with_attribute(BitString('1')), "bit string of '1' with the attributes {'extra': 1}"),
    (lambda: BitString('2', False), "bit string of '2' .*the digits '0' and '1'"),
]

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
    *(BIT_STRINGS if BitString is not str else ()),  # SQLAlchemy 2.0 has none
    (lambda: with_attribute(MultiRange()), "attribute 'extra' that is no field"),
    (lambda: with_attribute(Multirange()), "attribute 'extra' that is no field"),
    (lambda: with_attribute(Int4Range(1)), "attribute 'extra' that is no field"),
    (lambda: MutableDict(a=1), r'MutableDict, a subclass of dict.*dict\(\.\.\.\)'),
    (lambda: Jsonb({}), "Jsonb, a kind that can't be cached"),
    (lambda: rows((1, 2), keys=('id', 'id'))[0]._mapping, r"columns are called \['id', 'id'\]"),
    (lambda: rows((1, 2), keys=('id', 'id'))[0], r"columns are called \['id', 'id'\].*label"),
]

#: Functions that put a part into a value, and how the message names the part's place.
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
    (lambda part: rows((1, part))[0]._mapping, "users['name']"),
    (lambda part: Range(1, part), 'users.upper'),
    (lambda part: PsycopgRange(part), 'users.lower'),
    (lambda part: MultiRange([Range(1), Range(part)]), 'users.ranges[1].lower'),
    (lambda part: [*rows((1, 2)), *rows((part, 2), keys=('a', 'b'))], 'users[1].a'),
]


@pytest.mark.parametrize(('make', 'message'), REFUSED)
def test_a_refusal_says_what_it_found_and_what_to_do(
    serializer: Serializer, make: Callable[[], object], message: str
) -> None:
    """A value that can't come back exactly is refused with its type and advice, at any depth."""
    for value, place in ((make(), 'users'), ([{'a': make()}], r"users\[0\]\['a'\]")):
        pattern = f"^users can't be cached: {place} .*{message}"
        with pytest.raises(ValueNotCacheable, match=pattern):
            serializer.encode(value, 'users')


@pytest.mark.parametrize(('wrap', 'place'), PLACES)
def test_a_refusal_names_the_place(
    serializer: Serializer, wrap: Callable[[Any], object], place: str
) -> None:
    """The message names the place of the part that can't be cached."""
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


def nested(levels: int, wrap: Callable[[Any], Any]) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = wrap(value)
    return value


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
    """A value that is nested up to the limit comes back; a more deeply nested one is refused."""
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
    """With too little stack left, encoding refuses a value with no other error; decoding works."""
    deep = nested(MAX_DEPTH, lambda value: (value,))
    data = serializer.encode(deep).data
    with pytest.raises(ValueNotCacheable, match='nested too deeply'):
        at_the_end_of_the_stack(lambda: serializer.encode(deep))
    assert form(at_the_end_of_the_stack(lambda: serializer.decode(data))) == form(deep)


@examples(300)
@given(ANY_VALUE)
def test_no_other_object_hides_in_any_value(value: object) -> None:
    """Beside any value, a part that can't be cached is found."""
    with pytest.raises(ValueNotCacheable, match=r'value\[1\]\[0\] is of type bytearray'):
        Serializer(TYPES).encode([value, (bytearray(b'x'),)])
