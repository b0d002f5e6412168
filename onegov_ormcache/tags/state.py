"""Reads a tenant's state, as ``lua/snapshot.lua`` returns it, and its list of identities.

Any program may have written to the keys, so no byte is trusted: a state that can't be read is a
:class:`DamagedState`. This module sends no commands, and does not know how the state is replaced.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .snapshot import Doubt, Snapshot

#: A transaction's key or id, see :class:`~onegov_ormcache.tags.settling.Oracle`: a number. The
#: database takes another text for that of a transaction that has ended.
TRANSACTION = re.compile('[0-9]{1,20}', re.ASCII)

#: Stands for the ids of transactions if the database has none.
LEASE = 'lease'

#: A token of a list of identities, see :func:`~onegov_ormcache.tags.snapshot.new_token`.
TOKEN = re.compile(b'[A-Za-z0-9_-]{1,64}')


class DamagedState(Exception):
    """Raised if a tenant's state can't be read.

    :param epoch: the epoch in it, as it was.
    """

    def __init__(self, what: str, epoch: bytes) -> None:
        super().__init__(what)
        self.epoch = epoch


def read_state(
    reply: Sequence[bytes], identity: str, identities: str
) -> tuple[Snapshot, str | None]:
    """Return the snapshot in a reply of ``snapshot.lua``: fields and values, alternating.

    :return: also what was wrong with the state that this one has replaced; None if nothing was.
    :raises DamagedState: if a part of the state can't be read.
    """
    try:
        return _read(reply, identity, identities)
    except (ValueError, KeyError, RecursionError) as error:
        epoch = dict(zip(reply[::2], reply[1::2], strict=True)).get(b'epoch', b'')
        raise DamagedState(f'it can not be read ({error!r:.100})', epoch) from error


def _read(
    reply: Sequence[bytes], identity: str, identities: str
) -> tuple[Snapshot, str | None]:
    versions: dict[str, str] = {}
    doubts: dict[str, Doubt] = {}
    fields: dict[str, str] = {}
    for name, value in zip(*[map(bytes.decode, reply)] * 2, strict=True):
        if name.startswith('v:'):
            versions[name[2:]] = value
        elif name.startswith('d:'):
            doubts[name[2:]] = _doubt(value)
        else:
            fields[name] = value
    snapshot = Snapshot.of(
        fields['birth'],
        fields['epoch'],
        versions,
        doubts,
        _waiting(fields.get('quarantine')),
        identity,
        identities,
    )
    return snapshot, fields.get('damage')


def read_changes(reply: Sequence[Any], known: Snapshot, identities: str) -> Snapshot:
    """Return the snapshot after the changes in a reply of ``snapshot.lua``.

    :param reply: the epoch; the changed fields and their values, alternating; the fields that are
        gone.
    :param known: the snapshot of the epoch that the script was told.
    :raises DamagedState: if a part of the changes can't be read.
    """
    epoch, changed, gone = reply
    try:
        return _changed(epoch, changed, gone, known, identities)
    except (ValueError, KeyError, RecursionError) as error:
        raise DamagedState(f'it can not be read ({error!r:.100})', epoch) from error


def _changed(
    epoch: bytes,
    changed: Sequence[bytes],
    gone: Sequence[bytes],
    known: Snapshot,
    identities: str,
) -> Snapshot:
    versions: dict[str, str] = {}
    doubts: dict[str, Doubt] = {}
    for name, value in zip(*[map(bytes.decode, changed)] * 2, strict=True):
        if name.startswith('v:'):
            versions[name[2:]] = value
        else:
            doubts[name[2:]] = _doubt(value)
    names = [name.decode() for name in gone]
    snapshot = known.after(
        epoch.decode(),
        versions,
        doubts,
        gone=[name[2:] for name in names if name.startswith('v:')],
        ended=[name[2:] for name in names if name.startswith('d:')],
    )
    if identities == known.identities:
        return snapshot
    return replace(snapshot, identities=identities)


def _doubt(text: str) -> Doubt:
    doubt = json.loads(text)
    if not isinstance(doubt, dict):
        raise ValueError('a doubt is no object')
    tags, key = doubt['tags'], doubt['key']
    if tags == {}:  # Lua does not tell an empty list from an empty object
        tags = []
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise ValueError('the tags of a doubt are no texts')
    if not isinstance(key, str) or (key and not TRANSACTION.fullmatch(key)):
        raise ValueError('the key of a doubt is that of no transaction')
    ''.join(tags).encode()  # raises for lone surrogates, which no script takes
    return Doubt(frozenset(tags), key)


def _waiting(quarantine: str | None) -> tuple[str, ...] | None:
    if quarantine is None:
        return None
    waiting = tuple(filter(None, quarantine.split(',')))
    if waiting != (LEASE,) and not all(map(TRANSACTION.fullmatch, waiting)):
        raise ValueError('the quarantine waits for something that is no transaction')
    return waiting


def read_token(token: bytes | None) -> str:
    """Return the token of a list of identities; '' if it is none."""
    return token.decode() if token is not None and TOKEN.fullmatch(token) else ''


def read_identities(reply: Sequence[bytes]) -> Mapping[str, float]:
    """Return when each identity of a list was last found, in seconds of the store's clock.

    What can't be read is left out.
    """
    found = {}
    for name, since in zip(reply[::2], reply[1::2], strict=True):
        if name.startswith(b'i:'):
            try:
                found[name[2:].decode()] = float(since)
            except ValueError:
                continue
    return found
