"""The bytes of a value on Redis: whose value it is, its stamp, and for how long it was stored.

Any program may have written the bytes, so nothing of them is trusted: other bytes than those of a
value of this key are a :class:`DamagedValue`, and never another key's value. The stamp and the
value are read one by one, within bounds that are checked before.

No clock of another host is compared with one of this host. A value has no time of its creation,
but Redis tells how much is left of the lifetime that it was stored with.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import ormsgpack

from .process import StoredValue
from .serializer import Encoded

#: What the bytes of every value begin with; the last byte is the version of the format.
MAGIC = b'ormcache\x02'

#: The length of the key, which follows.
_KEY = struct.Struct('>I')

#: Whether the value is immutable, the milliseconds of its lifetime (0: it does not expire), and
#: the length of its stamp. Stamp and value follow. ``values.lua`` reads the lifetime, and
#: ``claim.lua`` the length and the stamp.
_REST = struct.Struct('>?QI')

#: The most bytes that a stamp may have: it is read also for a value that is not used.
MAX_STAMP = 256 * 1024

#: The most seconds of a lifetime, some thousand years; Redis has no longer ones.
MAX_LIFETIME = 1e11

#: Milliseconds by which Redis' rounding may make a value look younger than new.
_ROUNDING = 2

#: What the tag store says of the remaining time of a key that is no string, or has too many bytes.
UNREADABLE = -3

#: A value's bytes as Redis has them, None if there are none; and the milliseconds that are left of
#: its lifetime, below 0 if it does not expire, or if Redis does not know of a lifetime.
Found = tuple[bytes | None, int]


class DamagedValue(Exception):
    """Raised if bytes are not those of a value of their key."""


def head(key: str) -> bytes:
    """Return what the bytes of each value of this key begin with, up to the flag."""
    name = key.encode()
    return MAGIC + _KEY.pack(len(name)) + name


def overhead(key: str) -> int:
    """Return the most bytes that a value of this key takes beside its own."""
    most_of_key = 4 * len(key)  # in UTF-8
    return len(MAGIC) + _KEY.size + most_of_key + _REST.size + MAX_STAMP


def earlier(expires: float | None, lifetime: float | None, since: float) -> float | None:
    """Return when a value expires that has two bounds; None: never.

    :param expires: the one, a time of the monotonic clock.
    :param lifetime: the other, seconds since the time ``since``.
    """
    if lifetime is None:
        return expires
    end = since + lifetime
    return end if expires is None else min(expires, end)


def pack(key: str, stored: StoredValue, lifetime: float | None) -> bytes | None:
    """Return the bytes of a value; None if its stamp is too large.

    :param key: the value's full key of Redis.
    :param lifetime: seconds for which it may be used, :data:`MAX_LIFETIME` at most; None for no
        limit.
    """
    stamp = ormsgpack.packb(dict(stored.stamp))
    if len(stamp) > MAX_STAMP:
        return None
    milliseconds = 0 if lifetime is None else max(1, int(lifetime * 1000))
    rest = _REST.pack(stored.encoded.immutable, milliseconds, len(stamp))
    return b''.join((head(key), rest, stamp, stored.encoded.data))


class Head(NamedTuple):
    """What stands before a value in its bytes."""

    immutable: bool
    #: Milliseconds of its lifetime; 0: it does not expire.
    lifetime: int
    stamp: dict[str, str]
    #: The number of bytes before the value itself.
    length: int


def read_head(key: str, data: bytes) -> Head | None:
    """Return what stands before the value of a key.

    :param data: the bytes of the key, or their begin.
    :return: None if the value is of another version of the format.
    :raises DamagedValue: if they are no value of this key.
    """
    expected = head(key)
    if not data.startswith(expected):
        if data[: len(MAGIC)] != MAGIC and data.startswith(MAGIC[:-1]):
            return None
        raise DamagedValue('it is the value of another key, or none')
    at = len(expected)
    if len(data) < at + _REST.size:
        raise DamagedValue('it is cut off')
    immutable, lifetime, length = _REST.unpack_from(data, at)
    start = at + _REST.size
    if length > MAX_STAMP or len(data) < start + length:
        raise DamagedValue('its stamp is cut off, or too large')
    try:
        stamp = ormsgpack.unpackb(data[start : start + length])
    except ValueError as error:
        raise DamagedValue('its stamp is none') from error
    if type(stamp) is not dict or set(map(type, stamp.values())) - {str}:
        raise DamagedValue('its stamp is none')
    return Head(immutable, lifetime, stamp, start + length)


def unpack(
    key: str, data: bytes, left: int, lifetime: float | None, asked: float
) -> StoredValue | None:
    """Return the value that the bytes of a key are.

    It expires at the end of its own lifetime, or of the reader's if that is earlier.

    :param left: milliseconds that are left of its own lifetime, as Redis says.
    :param lifetime: seconds for which this process may use a value after it was stored; None for
        no limit.
    :param asked: the time of the monotonic clock before Redis was asked.
    :return: None if the value is of another version of the format, has expired, or if it is not
        known when it does.
    :raises DamagedValue: if they are no value of this key.
    """
    found = read_head(key, data)
    if found is None:
        return None
    immutable, stored_for, stamp, start = found
    expires: float | None = None
    if stored_for:
        age = stored_for - left  # if Redis does not know what is left, it is past
        if age < -_ROUNDING:
            raise DamagedValue('it expires later than it was stored for')
        expires = earlier(asked + left / 1000, lifetime, asked - age / 1000)
    elif lifetime is not None:
        return None
    if expires is not None and expires <= asked:
        return None
    return StoredValue(stamp, Encoded(data[start:], immutable), expires)
