"""The bytes of a value: they are those of one key, and all others are a miss."""

from __future__ import annotations

import struct
from contextlib import suppress

import ormsgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onegov_ormcache.tiers.process import StoredValue
from onegov_ormcache.tiers.serializer import Encoded
from onegov_ormcache.tiers.stored import (
    MAGIC,
    MAX_STAMP,
    DamagedValue,
    head,
    overhead,
    pack,
    unpack,
)

KEY = '{town:main}:value:users'
STAMP = {'table:users': 'v1', 'größe': 'v2'}
ASKED = 1000.0


def packed(key: str = KEY, lifetime: float | None = None, immutable: bool = True) -> bytes:
    data = pack(key, StoredValue(STAMP, Encoded(b'value', immutable), None), lifetime)
    assert data is not None
    return data


def body(data: bytes, stamp: bytes = b'\x80', length: int | None = None) -> bytes:
    """The bytes of a value with any stamp."""
    length = len(stamp) if length is None else length
    return head(KEY) + struct.pack('>?QI', True, 0, length) + stamp + data


@pytest.mark.parametrize('immutable', [True, False])
@pytest.mark.parametrize('key', [KEY, '', 'größe', 'x' * 1000])
def test_what_is_packed_comes_back(key: str, immutable: bool) -> None:
    """A value has its stamp, its bytes and its flag, and no more bytes than it may have."""
    data = packed(key, immutable=immutable)
    assert len(data) <= overhead(key) + len(b'value')
    assert unpack(key, data, -1, None, ASKED) == StoredValue(
        STAMP, Encoded(b'value', immutable), None
    )


@pytest.mark.parametrize('key', ['', KEY[:-1], KEY + '/editor', KEY.replace('main', 'other')])
def test_the_value_of_another_key_is_none(key: str) -> None:
    """A record that was copied to another key is no value there, however alike the keys are."""
    with pytest.raises(DamagedValue):
        unpack(KEY, packed(key), -1, None, ASKED)
    with pytest.raises(DamagedValue):
        unpack(key, packed(KEY), -1, None, ASKED)


@pytest.mark.parametrize(
    'data',
    [
        b'',
        b'nonsense',
        MAGIC,
        head(KEY),
        head(KEY) + b'\x00' * 12,
        ormsgpack.packb([{}, b'', True, 1.0]),
        body(b'', b'\xc1'),
        body(b'', b''),
        body(b'', b'\x07'),
        body(b'', b'\x90'),
        body(b'', b'\x81\x01\xa1x'),
        body(b'', b'\x81\xa1x\x01'),
        body(b'', b'\x80', 2),
        body(b'x' * MAX_STAMP, b'\x80', MAX_STAMP + 1),
        body(b'', b'\x81\xa1x' + b'\x91' * 100_000),
        body(b'', b'\xdf\xff\xff\xff\xff'),
    ],
)
def test_other_bytes_are_damage(data: bytes) -> None:
    """Bytes that are cut off, or have no stamp, are no value."""
    with pytest.raises(DamagedValue):
        unpack(KEY, data, -1, None, ASKED)


def test_another_format_is_a_miss() -> None:
    """The values of a release with another format are no damage."""
    data = packed()
    assert unpack(KEY, MAGIC[:-1] + b'\x03' + data[len(MAGIC) :], -1, None, ASKED) is None


def test_a_stamp_that_is_too_large_is_not_packed() -> None:
    """A stamp that nobody would read is not written."""
    stamp = {f'table:{number}': 'v' * 16 for number in range(20_000)}
    assert pack(KEY, StoredValue(stamp, Encoded(b'', True), None), None) is None


@pytest.mark.parametrize(
    ('stored_for', 'left', 'lifetime', 'expires'),
    [
        (None, -1, None, None),
        (60, 59_000, None, 59),
        (60, 0, None, None),
        (60, -1, None, None),
        (60, 60_000, 60, 60),
        (60, 59_000, 60, 59),
        (60, 1, 60, 0.001),
        (60, 0, 60, None),
        (60, 31_000, 30, 1),
        (60, 30_000, 30, None),
        (60, 30_000, 120, 30),
        (None, -1, 60, None),
        (60, -1, 60, None),
    ],
)
def test_lifetimes(
    stored_for: float | None, left: int, lifetime: float | None, expires: float | None
) -> None:
    """A value lives as long as it was stored for, and as the reader's setting says.

    If Redis does not know of its lifetime, or it has none and the reader's setting has, it is a
    miss.
    """
    found = unpack(KEY, packed(lifetime=stored_for), left, lifetime, ASKED)
    if stored_for is None and lifetime is None:
        assert found is not None
        assert found.expires is None
    elif expires is None:
        assert found is None
    else:
        assert found is not None
        assert found.expires == pytest.approx(ASKED + expires)


def test_a_lifetime_that_was_made_longer_is_damage() -> None:
    """A value that would expire later than it was stored for does not."""
    with pytest.raises(DamagedValue):
        unpack(KEY, packed(lifetime=60), 3_600_000, 60, ASKED)


@given(
    st.one_of(st.binary(), st.binary().map(body), st.builds(body, st.binary(), st.binary())),
    st.integers(-3, 10**9),
    st.none() | st.floats(0.001, 1e9),
)
def test_any_bytes_are_a_value_or_damage(data: bytes, left: int, lifetime: float | None) -> None:
    """No bytes raise another error, and bytes that are taken for a value have all its parts."""
    with suppress(DamagedValue):
        stored = unpack(KEY, data, left, lifetime, ASKED)
        if stored is not None:
            assert isinstance(stored.stamp, dict)
            assert all(isinstance(part, str) for pair in stored.stamp.items() for part in pair)
            assert isinstance(stored.encoded.data, bytes)
            assert isinstance(stored.encoded.immutable, bool)
