"""Helpers that run the statement analyzer, and make the statements that its tests expect."""

from __future__ import annotations

from typing import Any

import pytest

from onegov_ormcache.database.statements import Statement, StatementAnalyzer

POSTGRESQL = 'postgresql'
SQLITE = 'sqlite'


def touching(reads: str = '', writes: str = '', deletes: str = '', updates: str = '') -> Statement:
    """Make a statement of names: `touching('users groups', updates='users.name')`."""
    pairs = (name.rpartition('.') for name in updates.split())
    return Statement(
        frozenset(reads.split()),
        frozenset(writes.split()),
        frozenset(deletes.split()),
        frozenset((table, column) for table, _, column in pairs),
    )


def analyzed(dialect: str, sql: str) -> Statement:
    """Return what a statement touches, without the functions that it calls."""
    return without_calls(StatementAnalyzer(dialect).analyze(sql, None))


def without_calls(statement: Statement) -> Statement:
    return statement._replace(calls=frozenset())


class Parsers:
    """Counts the parsers that an analyzer makes."""

    def __init__(self, analyzer: StatementAnalyzer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self._make = analyzer._sqlglot.parser
        monkeypatch.setattr(analyzer._sqlglot, 'parser', self._counted)

    def _counted(self, **options: Any) -> Any:
        self.count += 1
        return self._make(**options)
