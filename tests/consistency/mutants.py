"""Removes one guard of the protocol at a time, to show that the evidence misses it.

A guard of which nobody notices the removal is either not needed or not tested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

import psycopg

from onegov_ormcache.core import registry
from onegov_ormcache.core.changed_rows import ChangedRows
from onegov_ormcache.core.doubts import Doubts
from onegov_ormcache.core.eviction import WritePath
from onegov_ormcache.core.scope import RequestScope
from onegov_ormcache.core.storing import Computed
from onegov_ormcache.core.torn_pages import TornPages
from onegov_ormcache.core.versions import Versions
from onegov_ormcache.core.write_skews import Required, WriteSkewCheck
from onegov_ormcache.database import catalog, postgres, statements
from onegov_ormcache.database.driver import ReportingCursor
from onegov_ormcache.database.inquiries import PostgresInquiry
from onegov_ormcache.database.notes import Notes
from onegov_ormcache.database.oracle import PostgresOracle
from onegov_ormcache.tags import scripts
from onegov_ormcache.tags.memory import AnsweredDoubt
from onegov_ormcache.tags.redis import RedisTagStore
from onegov_ormcache.tags.settling import Settler
from onegov_ormcache.tags.snapshot import NO_VERSIONS, Snapshot, Stamp

Mutant = Callable[[], AbstractContextManager[Any]]

original_script = scripts.script
original_was_stored = Computed.was_stored
original_blocks = RequestScope.blocks
original_end = RequestScope._end_snapshot
original_identify = Versions.identify
original_scope_identify = RequestScope.identify


def without_doubt() -> AbstractContextManager[Any]:
    def doubt(
        self: Any,
        schema: str,
        writer: str,
        tags: Any,
        known: Any,
        key: str,
        read: Stamp,
        computed: Stamp = NO_VERSIONS,
    ) -> AnsweredDoubt:
        return AnsweredDoubt(None, frozenset(tags))

    return patch.object(RedisTagStore, 'doubt', doubt)


@contextmanager
def without_change_before_doubt() -> Iterator[None]:
    """The doubt is sent and answered as soon as a transaction of a hasty cache has begun."""
    original_begun, original_put = WritePath.begun, Doubts.put

    def begun(self: WritePath, connection: Any, view: Any, inquiry: Any) -> None:
        original_begun(self, connection, view, inquiry)
        if getattr(self._cache, 'is_hasty', False):  # one that only reads must store its values
            self.tags.add('table:users')
            original_put(self._doubts, self._own_doubt(Required(), {}), inquiry.key)

    with (
        patch.object(WritePath, 'begun', begun),
        patch.object(WritePath, 'last_flush_ended', lambda self: None),
        patch.object(Doubts, 'put', lambda self, own, key: None),
    ):
        yield


def without_answer() -> AbstractContextManager[Any]:
    """COMMIT is sent whatever became of the doubt."""

    def put(self: Doubts, own: Any, key: str) -> None:
        self.send(own, key)
        self.tags = own.tags

    return patch.object(Doubts, 'put', put)


def without_sum_of_doubts() -> AbstractContextManager[Any]:
    def change(name: str, text: str) -> str:
        return text if name != 'doubt' else _replaced(text, 'if sent then', 'if false then')

    return _with_script(change)


def without_lock_of_the_writer() -> AbstractContextManager[Any]:
    """Whoever asks takes each transaction for ended."""
    return patch.object(PostgresOracle, 'is_open', lambda self, key: False)


def without_check_on_fill() -> AbstractContextManager[Any]:
    def fill_many(self: Any, schema: str, values: Any) -> list[bool]:
        for _, key, value, _, lock in values:
            self.client.set(key, value)
            self.unclaim_many(schema, [lock] if lock else [])
        return [True] * len(values)

    return patch.object(RedisTagStore, 'fill_many', fill_many)


def without_check_on_read() -> AbstractContextManager[Any]:
    return patch.object(Snapshot, 'agrees', lambda self, stamp: True)


def with_process_tier_first() -> AbstractContextManager[Any]:
    def was_stored(self: Computed, is_stored: bool) -> None:
        original_was_stored(self, is_stored)
        if self.stored is not None:
            self.lookup.keep_in_process(self.stored, self.value)

    return patch.object(Computed, 'was_stored', was_stored)


@contextmanager
def without_snapshot_before_view() -> Iterator[None]:
    def identify(
        self: RequestScope, connection: Any, beginning: Any, view: Any, inquiry: Any
    ) -> Any:
        # a process that knows its database takes no snapshot here
        if self.cache.tags.identity(self.schema) is not None:
            return view, inquiry
        return original_scope_identify(self, connection, beginning, view, inquiry)

    with (
        patch.object(RequestScope, 'transaction', lambda self, connection: WritePath(self)),
        patch.object(RequestScope, 'identify', identify),
        patch.object(RequestScope, 'take_second_snapshot', lambda self: None),
    ):
        yield


def without_second_snapshot() -> AbstractContextManager[Any]:
    return patch.object(RequestScope, 'take_second_snapshot', lambda self: None)


def without_own_change_bypass() -> AbstractContextManager[Any]:
    def blocks(self: RequestScope, tags: Any) -> bool:
        kept, self.transactions = self.transactions, set()
        try:
            return original_blocks(self, tags)
        finally:
            self.transactions = kept

    return patch.object(RequestScope, 'blocks', blocks)


def without_end_of_request_tier() -> AbstractContextManager[Any]:
    def end(self: RequestScope) -> None:
        kept = dict(self.tier)
        original_end(self)
        number = self.snapshot_number
        self.tier.update({k: entry._replace(snapshot_number=number) for k, entry in kept.items()})

    return patch.object(RequestScope, '_end_snapshot', end)


def with_rollback_as_evidence() -> AbstractContextManager[Any]:
    return patch.object(WritePath, 'lost', WritePath.rolled_back)


def without_settling() -> AbstractContextManager[Any]:
    return patch.object(Settler, 'settle', lambda *arguments: None)


def without_savepoint_drop() -> AbstractContextManager[Any]:
    return patch.object(WritePath, 'savepoint_lost', lambda self: None)


def _with_script(change: Callable[[str, str], str]) -> AbstractContextManager[Any]:
    """The Lua scripts of stores that are made from now on are changed."""

    def script(name: str) -> str:
        text = original_script(name)
        return change(name, text)

    return patch.object(scripts, 'script', script)


def _replaced(text: str, old: str, new: str) -> str:
    assert old in text, f'the script has no {old!r} any more'
    return text.replace(old, new)


def without_quarantine() -> AbstractContextManager[Any]:
    return _with_script(lambda name, text: _replaced(text, "ARGV[2] == '1'", 'false'))


def without_birth_after_quarantine() -> AbstractContextManager[Any]:
    def change(name: str, text: str) -> str:
        if name != 'quarantine':
            return text
        return _replaced(text, ' .. ENDED', '')

    return _with_script(change)


def without_run_id() -> AbstractContextManager[Any]:
    return _with_script(
        lambda name, text: _replaced(
            text, 'head[1] ~= run_id', "redis.call('EXISTS', key) == 0"
        )
    )


def without_fresh_epochs() -> AbstractContextManager[Any]:
    def change(name: str, text: str) -> str:
        if name in scripts.LEAN:
            return text
        return _replaced(text, "redis.call('HSET', key, 'epoch', token)\nend", 'end')

    return _with_script(change)


def without_identity() -> AbstractContextManager[Any]:
    def identify(
        self: Versions, schema: str, identities: Any, snapshot: Snapshot, *, replica: bool
    ) -> bool:
        same = dict.fromkeys(identities, 'same')
        return original_identify(self, schema, same, snapshot, replica=replica)

    return patch.object(Versions, 'identify', identify)


def without_asking_again() -> AbstractContextManager[Any]:
    def change(name: str, text: str) -> str:
        if name != 'snapshot':
            return text
        return _replaced(text, "listed == '' or listed ~= ARGV[4]", "ARGV[4] == ''")

    return _with_script(change)


def without_write_skew_check() -> AbstractContextManager[Any]:
    return patch.object(WriteSkewCheck, 'required', lambda self: Required())


def without_unseen_writers() -> AbstractContextManager[Any]:
    return patch.object(PostgresOracle, 'unseen_writers', lambda self, ids, schemas: ())


def without_compiler() -> AbstractContextManager[Any]:
    return patch.object(statements, 'notes_of', lambda context: Notes())


def without_lock_table() -> AbstractContextManager[Any]:
    original = PostgresInquiry.last_changes
    return patch.object(
        PostgresInquiry, 'last_changes', lambda self, is_unclear: original(self, is_unclear=False)
    )


def without_cursor_factory() -> AbstractContextManager[Any]:
    return patch.object(ReportingCursor, '_report', lambda self: None)


def without_catalog() -> AbstractContextManager[Any]:
    original = catalog._definition
    return patch.object(catalog, '_definition', lambda row: original(row)._replace(acts=None))


def without_check_of_definitions() -> AbstractContextManager[Any]:
    return patch.object(WritePath, '_definitions', lambda self: {})


def without_places() -> AbstractContextManager[Any]:
    original = WritePath._change_at

    def change_at(self: WritePath, place: str, tags: set[str]) -> None:
        if place == self._scope.schema:
            original(self, place, tags)

    return patch.object(WritePath, '_change_at', change_at)


@contextmanager
def without_marker_and_results() -> Iterator[None]:
    def check_results(self: Any, results: Any) -> None:
        psycopg.Cursor._check_results(self, results)

    # each of the two notices a text that commits and begins again
    with (
        patch.object(postgres, 'new_marker', lambda: ''),
        patch.object(ReportingCursor, '_check_results', check_results),
    ):
        yield


def without_torn_page_check() -> AbstractContextManager[Any]:
    return patch.object(TornPages, '_refuse', lambda self, tags: None)


def without_versions_of_loaded_rows() -> AbstractContextManager[Any]:
    return patch.object(ChangedRows, 'loaded', {})


def with_all_objects_loaded_here() -> AbstractContextManager[Any]:
    return patch.object(registry, 'is_loaded_here', lambda state: True)


@contextmanager
def without_changed_rows() -> Iterator[None]:
    """For the matrix, as every race of rows would notice it."""
    with (
        patch.object(WritePath, 'rows_changed', lambda self, *arguments: None),
        patch.object(ChangedRows, 'of_statement', lambda self, statement: frozenset()),
    ):
        yield


MUTANTS: dict[str, Mutant] = {
    'doubt': without_doubt,
    'doubt after the first change': without_change_before_doubt,
    'answer before COMMIT': without_answer,
    'sum of doubts': without_sum_of_doubts,
    'lock of the writer': without_lock_of_the_writer,
    'stamp check on fill': without_check_on_fill,
    'stamp check on read': without_check_on_read,
    'process tier only after the shared one': with_process_tier_first,
    'snapshot before view': without_snapshot_before_view,
    'second snapshot': without_second_snapshot,
    'own-change bypass': without_own_change_bypass,
    'request tier ended by commit': without_end_of_request_tier,
    'unknown outcome left to settling': with_rollback_as_evidence,
    'settling': without_settling,
    'savepoint drop': without_savepoint_drop,
    'quarantine': without_quarantine,
    'its new birth': without_birth_after_quarantine,
    'run_id': without_run_id,
    'fresh epochs': without_fresh_epochs,
    'identity': without_identity,
    'asking again': without_asking_again,
    'P4 of computed values': without_torn_page_check,
    'P5': without_write_skew_check,
    'P5 across a loss': without_unseen_writers,
    'notes of the compiler': without_compiler,
    'lock table': without_lock_table,
    'cursor factory': without_cursor_factory,
    'catalog': without_catalog,
    'definitions checked with the doubt': without_check_of_definitions,
    'place of a change': without_places,
    'marker, and results of the driver': without_marker_and_results,
    'versions of loaded rows': without_versions_of_loaded_rows,
    'objects from elsewhere': with_all_objects_loaded_here,
}
