"""Bytes that are no value raise UndecodableValue, and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ormsgpack import Ext, packb, unpackb

from onegov_ormcache.errors import UndecodableValue
from onegov_ormcache.tiers import decoding
from onegov_ormcache.tiers.encoding import PART
from onegov_ormcache.tiers.refusals import MAX_DEPTH
from onegov_ormcache.tiers.serializer import Serializer
from tests.support.examples import examples
from tests.tiers.serializable import MODULE, TYPES, framed, parts
from tests.tiers.strategies import ANY_VALUE

RANGE = 'psycopg.types.range:Range'
MULTIRANGE = 'psycopg.types.multirange:Multirange'
SQLALCHEMY_MULTIRANGE = 'sqlalchemy.dialects.postgresql.ranges:MultiRange'


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
        framed(b'', code=3),
        framed(packb(1), code=3),
        framed(packb([[]]), code=4),
        framed(packb([[1, 2], [1]]), code=6),
        framed(packb([[[]], [1]]), code=6),
        framed(packb([[]]), code=9),
        framed(packb([f'{MODULE}:Point', ['x', 'y'], [[1]]]), code=12),
        framed(packb([f'{MODULE}:Node', ['name'], [['x']]]), code=12),
        framed(packb(Ext(20, b'02024-13-01T00:00:00 '))),
        framed(packb(Ext(20, b'22024-01-01T00:00:00 '))),
        framed(packb(Ext(20, b'02024-01-01T00:00:00 zNo/Where'))),
        framed(packb(Ext(20, b'02024-01-01T00:00:00 z../../etc/passwd'))),
        framed(packb(Ext(20, b'02024-01-01T00:00:00 x'))),
        framed(packb(Ext(20, b'02024-01-01T00:00:00 o999999999999'))),
        framed(packb(Ext(20, b''))),
        framed(packb([['a'], [[1]]]), code=14),
        framed(packb([packb([['a'], [[]]]), []]), code=14),
        framed(packb([packb([['a', 'b'], [[], []]]), [[1]]]), code=15),
        framed(packb([packb([['a', 'b'], [[]]]), [[1, 2]]]), code=15),
        framed(packb([packb([['a', 'a'], [[], []]]), [[1, 2]]]), code=15),
        framed(packb([packb([[1], [[]]]), [[1]]]), code=15),
        framed(packb([packb([['a'], [[1]]]), [[1]]]), code=15),
        framed(packb([packb([['a'], [[[1, 2, 3]]]]), [[1]]]), code=15),
        framed(packb([b'', [[1]]]), code=15),
        framed(packb([packb([['a'], [[]]]), [[1, 2]]]), code=16),
        framed(packb([packb([['a'], [[]]]), 1]), code=17),
        framed(packb([RANGE, ['lower', 'upper', 'bounds'], [[1, 2, '[[']]]), code=9),
        framed(packb([RANGE, ['lower', 'upper', 'bounds'], [[1, 2, '']]]), code=9),
        framed(packb([RANGE, ['lower', 'upper', 'bounds'], [[None, 2, '[]']]]), code=9),
        framed(packb([MULTIRANGE, ['ranges'], [[[1]]]]), code=9),
        framed(packb([MULTIRANGE, ['ranges'], [['a']]]), code=9),
        framed(packb([SQLALCHEMY_MULTIRANGE, ['ranges'], [['a']]]), code=9),
        framed(packb(Ext(27, b'10.0.0.256'))),
        framed(packb(Ext(29, b'10.0.0.1/8'))),
        framed(packb(Ext(30, b'10.0.0.1'))),
        framed(packb(Ext(32, b'\xff'))),
        framed(packb(Ext(33, b'012'))),
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
    nested = [(3, b'\x90')]
    for number in range(MAX_DEPTH):
        lists = b'\x91' * 1000
        nested.append((3, lists + packb(Ext(PART, number.to_bytes(4, 'big')))))
    with pytest.raises(UndecodableValue, match='nested too deeply'):
        serializer.decode(parts(*nested))
    assert type(serializer.decode(parts(*nested[:MAX_DEPTH]))) is tuple


@pytest.mark.parametrize('stack', [1 << 20, 1 << 21])
def test_no_bytes_need_more_of_the_stack_than_a_thread_has(
    serializer: Serializer, stack: int
) -> None:
    """Bytes with extensions and lists within one another do not end the process."""
    body = b'\xc0'
    nested = [(3, b'\x90')]
    for number in range(MAX_DEPTH - 1):
        body = packb(Ext(3, b'\x91' * 1000 + body))
        nested.append((3, b'\x91' * 1000 + packb(Ext(PART, number.to_bytes(4, 'big')))))
    datas = [framed(body), framed(body, code=3), parts(*nested)]
    outcomes: list[object] = []

    def work() -> None:
        for data in datas:
            try:
                outcomes.append(type(serializer.decode(data)))
            except UndecodableValue:
                outcomes.append(None)

    before = threading.stack_size(stack)
    try:
        thread = threading.Thread(target=work)
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
    assert outcomes == [None, None, tuple]


@pytest.mark.parametrize(
    'data',
    [
        parts(),
        parts((0, packb(Ext(PART, b'\x00\x00\x00\x00')))),
        parts((0, packb(Ext(PART, b'\x00\x00\x00\x01'))), (0, b'\x01')),
        parts((3, b'\x90'), (0, packb([Ext(PART, b'\x00\x00\x00\x00')] * 2))),
        parts((3, b'\x90'), (0, packb(Ext(PART, b'')))),
        parts((0, packb(Ext(0, b'\x90')))),
        parts((0, packb(Ext(3, b'\x91' + packb(Ext(3, b'\x90')))))),
        parts((0, packb(Ext(3, b'\xdc\x00\xff' + b'\x01' * 255)))),
        parts((3, b'\x90'), (0, packb(Ext(3, b'\x91' + packb(Ext(PART, b'\x00' * 4)))))),
        parts((99, b'\x90')),
        parts((PART, b'\x00\x00\x00\x00')),
        parts((0, b'')),
        framed(b'')[:-3] + b'\x00\x00\x09',
    ],
)
def test_parts_that_do_not_fit_together_are_a_miss(
    serializer: Serializer, data: bytes
) -> None:
    """A part that is not there, comes later, or is in two places raises UndecodableValue."""
    with pytest.raises(UndecodableValue):
        serializer.decode(data)


def test_an_interrupt_while_decoding_is_no_miss(serializer: Serializer) -> None:
    """Ctrl-C or a worker's exit in a reader of an extension reaches the caller."""
    member = packb(Ext(7, packb([MODULE, 'Wired', '8'])))
    with pytest.raises(KeyboardInterrupt):
        serializer.decode(framed(member))
    with pytest.raises(KeyboardInterrupt):
        serializer.decode(framed(b'\x91' + member, code=3))


def test_an_error_says_why_the_bytes_are_no_value(serializer: Serializer) -> None:
    """The cause that ormsgpack drops is in the message and chained."""
    with pytest.raises(UndecodableValue, match='has other fields now') as error:
        serializer.decode(framed(packb([f'{MODULE}:Point', ['x'], [[1]]]), code=12))
    assert isinstance(error.value.__cause__, ValueError)


def test_an_error_that_ormsgpack_swallows_is_a_miss(
    serializer: Serializer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader's error makes the value a miss, even if ormsgpack returns a value after it."""

    def swallowing(data: memoryview, ext_hook: Callable[[int, bytes], object]) -> object:
        with suppress(ValueError):
            return unpackb(data, ext_hook=ext_hook)
        return None

    monkeypatch.setattr(decoding, 'unpackb', swallowing)
    assert serializer.decode(framed(packb([1]), code=3)) == (1,)
    with pytest.raises(UndecodableValue, match='x'):
        serializer.decode(framed(packb(Ext(24, b'x'))))


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
