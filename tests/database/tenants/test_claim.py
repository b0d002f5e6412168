"""A process claims its database for itself, until it ends."""

from __future__ import annotations

from onegov_ormcache.database.session_manager import SessionManager
from tests.database.fakes import Base, claim_database
from tests.database.tenants.work import spawn


def claim_elsewhere(dsn: str) -> bool:
    """Return whether another process can claim the database."""
    results = spawn.Queue()
    process = spawn.Process(target=claim_database, args=(dsn, results))
    process.start()
    try:
        found: bool = results.get(timeout=60)
        return found
    finally:
        process.join(timeout=10)
        process.kill()


def test_claim(dsn: str) -> None:
    """A claim keeps out all other managers and processes until its manager is disposed of."""
    manager = SessionManager(dsn, Base)
    manager.database.check()
    assert manager.database.claim()
    assert not claim_elsewhere(dsn)
    second = SessionManager(dsn, Base)
    assert not second.database.claim(), 'not even another manager of this process'
    manager.dispose()
    assert claim_elsewhere(dsn)
    assert second.database.claim(), 'the other process has ended'
    second.dispose()
