"""For hosts whose transactions are those of the package ``transaction``, with zope.sqlalchemy.

:func:`integrate` lets a cache follow them. :func:`register` is zope.sqlalchemy's, but for the
sessions of creators. Nothing here commits or aborts. This module needs the extra ``zope``.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import event
from sqlalchemy.orm import Session

from .core.ambient import AmbientScopes
from .core.cache import OrmCache
from .database.sessions import RunSession
from .errors import ConfigurationError, MissingExtraError
from .forks import OwnLock

try:
    from transaction import manager as thread_manager
    from transaction.interfaces import IDataManager, ISynchronizer
    from zope.interface import implementer
    from zope.sqlalchemy import datamanager
except ModuleNotFoundError as error:
    raise MissingExtraError(
        f'onegov_ormcache.zope needs {error.name}: '
        'python -m pip install "onegov_ormcache[zope]"'
    ) from error

#: The events that zope.sqlalchemy listens to: those whose first argument is the session, and those
#: whose argument has it as an attribute.
EVENTS = ('after_begin', 'after_attach', 'after_flush', 'before_commit')
EVENTS_WITH_CONTEXT = ('after_bulk_update', 'after_bulk_delete', 'do_orm_execute')


def integrate(
    cache: OrmCache, manager: Any = thread_manager, keep_session: bool = False
) -> Integration:
    """Let a cache follow the transactions of a transaction manager.

    A snapshot ends with the transaction, also if no session has joined it. A conflict of the cache
    is one that the transaction manager tries again. What a creator has written, and what
    ``mark_changed`` has reported, is committed, though zope.sqlalchemy saw no change.

    :param cache: the cache of a host. An app has it as ``app.orm_cache``, once it is set up.
    :param manager: the transaction manager of all threads; by default ``transaction.manager``.
    :param keep_session: what ``zope.sqlalchemy.register`` was called with.
    :return: has a method to follow further transaction managers; the same for each call.
    :raises ConfigurationError: if the cache makes its sessions itself.
    """
    if cache.ambient is None:
        raise ConfigurationError(
            f'{cache!r} makes its sessions itself; integrate() is for the cache of a host, which '
            'observe() makes known'
        )
    with _LOCK.present:
        known = getattr(cache.ambient.on_thread, '__self__', None)
        if isinstance(known, Integration):
            return known
        return Integration(cache, cache.ambient, manager, keep_session)


#: Held while a cache is integrated, because several threads may do that at once.
_LOCK = OwnLock()


class Integration:
    """Follows the transactions of a cache's host; made by :func:`integrate`, lives as long as the
    cache."""

    def __init__(
        self, cache: OrmCache, scopes: AmbientScopes, manager: Any, keep_session: bool
    ) -> None:
        self._cache = cache
        self._keep_session = keep_session
        self._manager = manager
        # transaction managers refer weakly to their synchronizers
        self._synchronizers: WeakKeyDictionary[Any, Synchronizer] = WeakKeyDictionary()
        self._lock = OwnLock()
        scopes.on_thread = self._follow_thread
        scopes.observer.on_write = self._wrote

    def _follow_thread(self) -> None:
        # a thread has a transaction manager of its own
        self.follow(getattr(self._manager, 'manager', self._manager))

    def follow(self, manager: Any) -> None:
        """Follow the transactions of one more transaction manager, as long as it lives.

        :param manager: one that this thread alone uses, such as Pyramid's ``request.tm``.
        """
        with self._lock.present:
            if manager not in self._synchronizers:
                synchronizer = self._synchronizers[manager] = Synchronizer(self._cache)
                manager.registerSynch(synchronizer)

    def _wrote(self, session: Session) -> None:
        """Let zope.sqlalchemy commit a session in whose transaction something was written."""
        if session in datamanager._SESSION_STATE:
            datamanager.mark_changed(session, self._manager, self._keep_session)


@implementer(ISynchronizer)
class Synchronizer:
    """Is told of the transactions of one transaction manager."""

    def __init__(self, cache: OrmCache) -> None:
        self._cache = cache

    def newTransaction(self, transaction: Any) -> None:
        # hooks that run after a commit may have read something since afterCompletion()
        self._end_unit()
        Conflicts(self._cache).join(transaction)

    def beforeCompletion(self, transaction: Any) -> None:
        # one that nobody has begun explicitly is not told as a new one
        Conflicts(self._cache).join(transaction)

    def afterCompletion(self, transaction: Any) -> None:
        self._end_unit()

    def _end_unit(self) -> None:
        if self._cache.ambient is not None and not self._cache.ambient.is_closed:
            self._cache.unit_ended()


@implementer(IDataManager)
class Conflicts:
    """Takes part in a transaction to say which errors a new attempt may resolve.

    :param cache: knows the conflicts.
    """

    transaction_manager: Any = None

    def __init__(self, cache: OrmCache) -> None:
        self._cache = cache

    def join(self, transaction: Any) -> None:
        """Take part in a transaction that may be committed, unless there is such a one."""
        joined = any(
            isinstance(each, Conflicts) and each._cache is self._cache
            for each in transaction._resources
        )
        if not joined and transaction.status in ('Active', 'Doomed'):
            self.transaction_manager = transaction._manager
            transaction.join(self)

    def should_retry(self, error: BaseException) -> bool:
        """Return whether a new attempt of the transaction may resolve the error."""
        return self._cache.is_conflict(error)

    def sortKey(self) -> str:
        return 'onegov_ormcache'

    def savepoint(self) -> Conflicts:
        """Return something that can be rolled back: nothing is kept here."""
        return self

    def rollback(self) -> None:
        """Do nothing, to a savepoint."""

    def abort(self, transaction: Any) -> None:
        """Do nothing."""

    def tpc_begin(self, transaction: Any) -> None:
        """Do nothing."""

    def commit(self, transaction: Any) -> None:
        """Do nothing."""

    def tpc_vote(self, transaction: Any) -> None:
        """Do nothing."""

    def tpc_finish(self, transaction: Any) -> None:
        """Do nothing."""

    def tpc_abort(self, transaction: Any) -> None:
        """Do nothing."""


def register(
    session: Any,
    initial_state: str = datamanager.STATUS_ACTIVE,
    transaction_manager: Any = thread_manager,
    keep_session: bool = False,
) -> Any:
    """Join sessions to transactions, as ``zope.sqlalchemy.register`` does.

    Use it instead if you register a *class* of sessions: creators get sessions derived from that
    class, and these must not join, because they work in the transaction of another session. For a
    factory or a single session both do the same.

    :param session: a session class, ``sessionmaker``, ``scoped_session`` or session.
    :param initial_state: see ``zope.sqlalchemy.register``.
    :param transaction_manager: see ``zope.sqlalchemy.register``.
    :param keep_session: see ``zope.sqlalchemy.register``.
    :return: the object whose methods listen, with ``mark_changed`` and ``join_transaction``.
    """
    events = datamanager.ZopeTransactionEvents(
        initial_state=initial_state,
        transaction_manager=transaction_manager,
        keep_session=keep_session,
    )
    for name in EVENTS:
        event.listen(session, name, _unless_run(getattr(events, name)))
    for name in EVENTS_WITH_CONTEXT:
        event.listen(session, name, _unless_run_of(getattr(events, name)))
    return events


def _unless_run(listener: Any) -> Any:
    def listen(session: Session, *arguments: Any) -> None:
        if not isinstance(session, RunSession):
            listener(session, *arguments)

    return listen


def _unless_run_of(listener: Any) -> Any:
    def listen(context: Any) -> None:
        if not isinstance(context.session, RunSession):
            listener(context)

    return listen
