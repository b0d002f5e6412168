"""The cache of a program without Morepath: its scopes, values, conflicts and events."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import fields
from threading import Barrier
from typing import Any, get_type_hints

import pytest
from sqlalchemy.exc import IntegrityError

import onegov_ormcache
from onegov_ormcache import OrmCache
from onegov_ormcache.core.recording import CacheEvent
from onegov_ormcache.core.settings import OrmCacheSettings, SettingsValues
from onegov_ormcache.errors import (
    ConfigurationError,
    OrmCacheError,
    PropertyError,
    RetryableConflict,
)
from tests.core.plain_objects import Names, add
from tests.support.backends import Backend
from tests.support.models import Base, Group, User


def test_values_are_shared_by_objects_and_scopes(cache: OrmCache, tenant: str) -> None:
    """A value is computed once for all objects of a class, and anew after a change."""
    one, two = Names(cache), Names(cache)
    for names in (one, two, one):
        with cache.scope(tenant):
            assert names.users == ()
    assert (one.runs.total, two.runs.total) == (1, 0)
    add(cache, tenant, User(name='Ada'))
    with cache.scope(tenant):
        assert two.users == (('Ada',),)
        assert one.users == (('Ada',),)
        assert one.first is one.first
    assert (one.runs.total, two.runs.total) == (1, 1)


def test_function_policy_of_a_class_that_is_not_bound(cache: OrmCache, tenant: str) -> None:
    """A property is bound when it is first read, and its policy is asked from then on."""
    names = Names(cache)
    with cache.scope(tenant):
        assert names.groups == 0
    add(cache, tenant, User(name='Ada'))
    with cache.scope(tenant):
        assert names.groups == 0
    assert names.runs.count('groups') == 1
    add(cache, tenant, Group(name='Staff'))
    with cache.scope(tenant):
        assert names.groups == 1


def test_by_role(cache: OrmCache, tenant: str) -> None:
    """The role is that of the object's identity."""
    with cache.scope(tenant):
        said = [Names(cache, role).greeting for role in ('editor', None, 'editor')]
    assert said == ['editor: 0', 'None: 0', 'editor: 0']


def test_scopes_of_two_caches(backend: Backend, stack: ExitStack, tenant: str) -> None:
    """A property is read in the scope of its own cache, also within a scope of another."""
    folder = f'{backend.settings["dsn"]}/other' if backend.name == 'embedded' else None
    other_settings = {**backend.settings, 'namespace': f'{backend.settings["namespace"]}-other'}
    if folder:
        other_settings['dsn'] = folder
    mine = stack.enter_context(OrmCache(base=Base, **backend.settings))
    other = stack.enter_context(OrmCache(base=Base, **other_settings))
    add(mine, tenant, User(name='mine'))
    add(other, tenant, User(name='other'))
    with mine.scope(tenant), other.scope(tenant) as inner:
        assert ('mine',) in Names(mine).users
        assert ('other',) in Names(other).users
        assert other.current_scope() is inner
        assert mine.session() is not other.session()
        with mine.scope(tenant) as nested:
            assert mine.current_scope() is nested


def retried(cache: OrmCache, tenant: str, work: Callable[[], object]) -> int:
    """Do the work in a scope, again after each conflict, and return the number of attempts."""
    for attempt in range(1, 50):
        try:
            with cache.scope(tenant) as scope:
                work()
                scope.commit()
            return attempt
        except Exception as error:
            if not cache.is_conflict(error):
                raise
    raise AssertionError('too many conflicts')


def test_conflicts_are_told(backend: Backend, stack: ExitStack, tenant: str) -> None:
    """An error that another attempt may resolve is a conflict, also if the database raised
    it; no other error is one."""
    settings = dict(backend.settings)
    if backend.name == 'servers':
        settings['engine_options'] = {'isolation_level': 'SERIALIZABLE'}
    cache = stack.enter_context(OrmCache(base=Base, **settings))
    add(cache, tenant, User(name='0'))
    names = Names(cache)
    barrier = Barrier(2)

    def count() -> None:
        attempts.append(1)
        user = cache.session().query(User).one()
        assert names.users
        if len(attempts) <= 2:
            barrier.wait(30)
        user.name = str(int(user.name) + 1)

    attempts: list[int] = []
    with ThreadPoolExecutor(2) as pool:
        needed = [pool.submit(retried, cache, tenant, count) for _ in range(2)]
        assert sum(future.result() for future in needed) > 2
    with cache.scope(tenant):
        assert names.users == (('2',),)
    assert cache.is_conflict(RetryableConflict())
    for other in (ValueError(), OrmCacheError(), IntegrityError('', {}, Exception())):
        assert not cache.is_conflict(other)
    with pytest.raises(ZeroDivisionError):
        retried(cache, tenant, lambda: 1 / 0)


def test_settings_are_typed() -> None:
    """The keyword arguments of a cache are the settings, with the same types."""
    hints = get_type_hints(OrmCacheSettings)
    expected = {field.name: hints[field.name] for field in fields(OrmCacheSettings)}
    # texts that name classes are replaced when the settings are read
    expected['types'] = Iterable[type | str]
    assert get_type_hints(SettingsValues) == expected


def test_public_names_are_listed() -> None:
    """`dir` lists each public name, also before its first use."""
    assert set(onegov_ormcache.__all__) <= set(dir(onegov_ormcache))


def test_first_function_policy_beside_a_writer(
    servers_backend: Backend, stack: ExitStack, tenant: str
) -> None:
    """A transaction that begins while the first function policy is being bound either asks it
    about all changes, or evicts its property without asking."""
    cache = stack.enter_context(OrmCache(base=Base, **servers_backend.settings))
    names = Names(cache)
    connect = cache.registry.connect

    def connect_late() -> None:
        # another thread's transaction begins just before the policy begins to be asked
        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(begin_and_flush)
            writers.append(writing.result())
        connect()

    def begin_and_flush() -> Any:
        scope = cache.open_scope(tenant, create=True)
        with scope.active():
            scope.session().add(Group(name='Staff'))
            scope.session().flush()
        return scope

    writers: list[Any] = []
    cache.registry.connect = connect_late  # type: ignore[method-assign]
    with cache.scope(tenant):
        assert names.groups == 0
    (writer,) = writers
    with writer.active():
        writer.commit()
        writer.close()
    with cache.scope(tenant):
        assert names.groups == 1


def test_prefetch(servers_backend: Backend, stack: ExitStack, tenant: str, redis_ops: Any) -> None:
    """`prefetch` gets what another process has computed in one command, besides the snapshot's."""
    settings = servers_backend.settings
    caches = [stack.enter_context(OrmCache(base=Base, **settings)) for _ in range(2)]
    for cache in caches:
        cache.bind(Names)
    with caches[0].scope(tenant):
        expected = (Names(caches[0]).users, Names(caches[0]).groups)
    names = Names(caches[1])
    with caches[1].scope(tenant):
        caches[1].session().connection()  # the process knows the tenant's database now
    with caches[1].scope(tenant), redis_ops(2):
        caches[1].prefetch(names, 'users', 'groups')
        assert (names.users, names.groups) == expected
    assert names.runs.total == 0
    with caches[1].scope(tenant), pytest.raises(PropertyError, match=r"Names has no .*'first'"):
        caches[1].prefetch(names, 'first')


def test_recording(cache: OrmCache, tenant: str) -> None:
    """Each event names what the cache did, the property with its class, and the tier."""
    with cache.recording() as events:
        for _ in range(2):
            with cache.scope(tenant):
                Names(cache).users
        add(cache, tenant, User(name='Ada'))
    name = f'{Names.__module__}.Names.users'
    assert [(e.kind, e.name, e.tier) for e in events] == [
        ('read', name, 'creator'),
        ('read', name, 'process'),
        ('commit', '', None),
    ]


def test_recording_in_an_open_scope(cache: OrmCache, tenant: str) -> None:
    """A read is recorded, also if its scope has read the same before the recording."""
    names = Names(cache)
    with cache.scope(tenant):
        names.users, names.users
        with cache.recording() as events:
            names.users, names.users
    assert [(event.kind, event.tier) for event in events] == [('read', 'request')] * 2


@pytest.mark.parametrize('first_ends', [True, False])
def test_recordings_that_overlap(cache: OrmCache, tenant: str, first_ends: bool) -> None:
    """Each of several blocks that record at once has all events of its time, in whichever order
    they end; afterwards nothing is recorded."""

    def change(name: str) -> None:
        add(cache, tenant, User(name=name))

    blocks = [cache.recording(), cache.recording()]
    first = blocks[0].__enter__()
    second = blocks[1].__enter__()
    change('a')
    blocks[0 if first_ends else 1].__exit__(None, None, None)
    change('b')
    blocks[1 if first_ends else 0].__exit__(None, None, None)
    change('c')
    assert (len(first), len(second)) == ((1, 2) if first_ends else (2, 1))
    assert cache.recorder is None


def test_recordings_are_bounded(cache: OrmCache, tenant: str) -> None:
    """A recording keeps the latest events, says how many older ones it has dropped, and takes
    nothing away from another one."""
    names = Names(cache)
    with cache.recording() as all_events, cache.recording(limit=3) as events:
        for number in range(4):
            add(cache, tenant, User(name=f'user-{number}'))
            with cache.scope(tenant):
                names.users
    assert (len(all_events), all_events.dropped) == (8, 0)
    assert (len(events), events.dropped) == (3, 5)
    assert events == all_events[-3:]
    for limit in (0, -1, 2.5, True, None):
        with pytest.raises(ConfigurationError, match='expected a number of events'):
            cache.recording(limit).__enter__()  # type: ignore[arg-type]
    assert cache.recorder is None


def test_listening_to_runs(cache: OrmCache, tenant: str) -> None:
    """Each run of a creator is told of, and is no event of a recording."""
    names = Names(cache)
    events: list[CacheEvent] = []
    with cache.recordings.listening(events.append, 'run'):
        with cache.scope(tenant), cache.recording() as recorded:
            names.users, names.users, names.first
    assert [event.name.rpartition('.')[2] for event in events] == ['users', 'first']
    assert {event.kind for event in recorded} == {'read'}


def test_representations_say_the_state(cache: OrmCache, tenant: str) -> None:
    """The `repr` of a cache, a scope, a snapshot and a transaction says its state."""
    namespace = cache.settings.namespace
    with cache.scope(tenant) as scope:
        assert f"'{namespace}'" in repr(cache)
        assert repr(scope) == f'<RequestScope {tenant} without session, 0 values>'
        assert repr(scope.snapshot()) == '<Snapshot of a database that was not identified>'
        scope.session().add(User(name='Ada'))
        scope.session().flush()
        assert 'tags' in repr(scope.snapshot())
        (transaction,) = scope.transactions
        assert repr(transaction) == f"<WritePath open {tenant} ['table:users']>"
        assert repr(scope) == f'<RequestScope {tenant} with session, 0 values>'
