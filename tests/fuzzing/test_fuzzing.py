"""No input raises another error than the one that is meant for it, and none is misread.

`pytest tests/fuzzing -s` prints the number of inputs; `--hypothesis-profile=long` tries more of
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import strategies as st

from onegov_ormcache.core.policies import TABLES, check_policy, resolve_policy
from onegov_ormcache.database.hosts import is_name
from onegov_ormcache.database.session_manager import SessionManager
from onegov_ormcache.errors import InvalidSchemaError, PolicyError, UndecodableValue
from onegov_ormcache.redis_client.client import connect, hash_tag
from onegov_ormcache.tags.redis import RedisTagStore
from onegov_ormcache.tags.state import DamagedState, read_state
from onegov_ormcache.tiers.process import StoredValue
from onegov_ormcache.tiers.serializer import Encoded, Serializer
from onegov_ormcache.tiers.shared import RedisTier
from onegov_ormcache.tiers.stored import DamagedValue, head, pack, unpack
from tests.fuzzing.fuzz import fuzz
from tests.support.models import Base
from tests.support.servers import RedisServer
from tests.tags.conformance import PAGES, TREE, USERS, put_in_doubt
from tests.tags.redis_store import KEY, settle_down
from tests.tiers.serializable import TYPES, parts
from tests.tiers.strategies import ANY_VALUE, TEXTS

VALUE = '{town:main}:value:users'


# values


def mutated(originals: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """The bytes, with some of them changed, left out, or more of them."""

    @st.composite
    def mutations(draw: Callable[[Any], Any]) -> bytes:
        data = bytearray(draw(originals))
        for _ in range(draw(st.integers(0, 4))):
            at = draw(st.integers(0, len(data)))
            data[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
        return bytes(data)

    made: Callable[[], st.SearchStrategy[bytes]] = mutations  # type: ignore[assignment]
    return made()


PARTS = st.lists(
    st.tuples(st.integers(0, 19), mutated(st.sampled_from([b'\x90', b'\xd6\x12' + b'\x00' * 4])))
).map(lambda each: parts(*each))


def test_values() -> None:
    """Bytes are a value, or are refused as one that can't be decoded."""
    serializer = Serializer(TYPES)

    def read(data: bytes) -> None:
        with suppress(UndecodableValue):
            serializer.encode(serializer.decode(data))

    encoded = ANY_VALUE.map(lambda value: serializer.encode(value).data)
    fuzz('values', 1000, st.one_of(st.binary(), PARTS, mutated(encoded)), read)


def test_stored_values() -> None:
    """Bytes at a key are a value of this key, or are refused as damaged."""

    def read(data: bytes) -> None:
        with suppress(DamagedValue):
            stored = unpack(VALUE, data, 50, 60, 0)
            assert data.startswith(head(VALUE)) or stored is None

    packed = st.builds(
        lambda key, stamp, data: pack(key, StoredValue(stamp, Encoded(data, True), None), 60),
        st.sampled_from([VALUE, VALUE + '/editor']),
        st.dictionaries(st.text(), st.text(), max_size=3),
        st.binary(),
    ).map(lambda data: data or b'')
    fuzz('stored values', 1000, st.one_of(st.binary(), mutated(packed)), read)


# the tenant's hash

NAMES = st.one_of(
    st.sampled_from(
        [b'run_id', b'key', b'birth', b'epoch', b'quarantine', b'forgotten', b'damage', b'v:',
         b'd:', b'd:w', b'v:table:users', b'v:property:x', b'v:\xff', b'']
    ),
    st.binary(max_size=10),
)  # fmt: skip
CONTENTS = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [b'7', b'7,9', b'lease', b'x' * 16, b'{}', b'[]', b'null', b'1e999', b'nan',
         b'{"tags": [], "key": "", "at": 1}', b'{"tags": ["a"], "key": "7", "at": "x"}']
    ),
    mutated(st.just(b'{"tags": ["table:users"], "key": "7", "at": 1}')),
)  # fmt: skip


def test_states() -> None:
    """Fields and values are a snapshot, or are refused as damaged."""

    def read(fields: dict[bytes, bytes]) -> None:
        with suppress(DamagedState):
            snapshot, _ = read_state([part for pair in fields.items() for part in pair], '', '')
            assert snapshot.usable

    whole = st.fixed_dictionaries(
        {b'birth': st.just(b'b'), b'epoch': st.just(b'e')},
    ).flatmap(lambda kept: st.dictionaries(NAMES, CONTENTS).map(lambda more: {**more, **kept}))
    fuzz('states', 1000, st.one_of(st.dictionaries(NAMES, CONTENTS), whole), read)


@pytest.fixture
def client(own_redis: RedisServer) -> Iterator[redis.Redis]:
    """A client of the test's own server."""
    with closing(connect(own_redis.url, 10)) as made:
        yield made


def test_states_on_a_server(client: redis.Redis) -> None:
    """With any fields in a tenant's key, readers and writers go on; nothing uncommitted or from
    before is valid."""
    store = RedisTagStore(client, 'town', quarantined=True)
    tier = RedisTier(store, Serializer(), 'town', None, 10)

    def damage(fields: dict[bytes, bytes]) -> None:
        before = settle_down(store)
        if fields:
            client.hset(KEY, mapping=fields)  # type: ignore[arg-type]
        client.hset(KEY, b'epoch', b'another')
        put_in_doubt(store, 'main', 'w', USERS, transaction_key='7')
        after = store.snapshot('main')
        assert USERS in after.in_doubt or after.quarantine is not None
        store.publish('main', 'w', [USERS])
        store.register('main', [TREE])
        store.forget('main', 60)
        store.settle('main', 'w', 60)
        present = store.snapshot('main')
        assert not present.agrees(before.stamp([USERS]))
        stored = StoredValue(before.stamp([USERS, PAGES]), Encoded(b'x', True), None)
        assert not tier.fill('main', 'users', stored)
        client.delete(KEY)

    fuzz('states on a server', 300, st.dictionaries(NAMES, CONTENTS, max_size=4), damage)


def test_values_on_a_server(client: redis.Redis) -> None:
    """With any bytes at a value's key, its readers have a miss or that value, and what is looked
    for beside it is found."""
    store = RedisTagStore(client, 'town', quarantined=False)
    tier = RedisTier(store, Serializer(), 'town', None, 10)
    stamp = store.snapshot('main').stamp([USERS])
    good = pack(VALUE, StoredValue(stamp, Encoded(b'value', True), None), None)
    other = pack(VALUE + '/editor', StoredValue(stamp, Encoded(b'other', True), None), None)
    assert good is not None
    assert other is not None
    assert tier.fill('main', 'beside', beside := StoredValue(stamp, Encoded(b'x', True), None))

    def read(data: bytes) -> None:
        client.set(VALUE, data)
        claims = [tier.claim('main', key, stamp, {}) for key in ('users', 'beside')]
        assert all(claim.enter() for claim in claims)
        found, found_beside = tier.look_many(claims)
        tier.leave_many(claims)
        assert found_beside == beside
        assert found == tier.get('main', 'users') == tier.get_many('main', ['users']).get('users')
        assert found is None or data.startswith(head(VALUE))

    inputs = st.one_of(st.binary(), mutated(st.just(good)), mutated(st.just(other)))
    fuzz('values on a server', 300, inputs, read)


# names and policies


def test_schema_names(tmp_path: Path) -> None:
    """A name is a tenant's, or is refused; a tenant's name is whole wherever it is used."""
    manager = SessionManager(f'sqlite:///{tmp_path}', Base)
    seen: dict[str, str] = {}

    def check(name: object) -> None:
        is_ours = True
        try:
            manager.check_schema(name)
        except InvalidSchemaError:
            is_ours = False
        if is_ours:
            assert is_name(name)
        if is_name(name):
            assert isinstance(name, str)
            assert len(name.encode()) <= 63, 'PostgreSQL cuts off what is longer'
            assert not set(name) & set('"{}|:\x00\n')
            tag = hash_tag('town', name)
            assert seen.setdefault(tag, name) == name
            assert tag.index('}') == len(tag) - 1, 'a cluster hashes up to the first brace'

    names = st.one_of(
        TEXTS, st.from_regex(r'[a-z0-9_-]{1,70}', fullmatch=True), st.binary(), st.none(),
        st.integers(), st.text('aä\U0001f986', min_size=10, max_size=70),
    )  # fmt: skip
    fuzz('schema names', 2000, names, check)
    manager.dispose()


def test_policies() -> None:
    """A policy names tables that there are, or is refused."""
    known = set(Base.metadata.tables)

    def check(policy: Any) -> None:
        try:
            check_policy(policy, 'App.users')
            found = resolve_policy(policy, known, 'App.users')
        except PolicyError:
            return
        assert found.tables <= known
        if isinstance(policy, str):
            assert found.auto or found.tables

    tables = st.sampled_from([*sorted(known), '', ' ', 'none', 'USERS', ','])
    texts = st.one_of(
        TEXTS,
        TEXTS.map(lambda text: TABLES + text),
        st.lists(tables).map(lambda names: TABLES + ','.join(names)),
        mutated(st.just(TABLES.encode() + b'users')).map(lambda data: data.decode('latin1')),
        st.sampled_from(['auto', 'Auto', TABLES]),
    )
    anything = st.one_of(texts, st.none(), st.integers(), st.sampled_from([int, Base, len]))
    fuzz('policies', 2000, st.recursive(anything, st.lists), check)
