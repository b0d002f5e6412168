"""Counters for a ``with`` block: statements of the application, Redis commands, creators' runs.

They count in all threads of this process. An error of the block is raised as it is; no numbers
are compared then.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

from sqlalchemy import event
from sqlalchemy.engine import Engine

from ..core.cache import OrmCache
from ..core.descriptors import cached_descriptors
from ..core.recording import CacheEvent
from ..database.names import INTERNAL_OPTION
from ..errors import PropertyError
from ..redis_client.sent import OF_STATISTICS, SENT, Command
from .targets import cache_of

#: The most characters of a command or statement in a message.
SHOWN = 300


@contextmanager
def db_queries(expected: int) -> Iterator[list[str]]:
    """Assert that the application executes so many SQL statements in a ``with`` block.

    The statements of all engines of this process count, except the package's own. One call of
    ``execute`` is one statement, however many rows it has. BEGIN, COMMIT and what goes to a cursor
    of the driver itself do not count.

    :param expected: the exact number.
    :return: the statements so far, as they are sent.
    :raises AssertionError: for any other number; it lists the statements.
    """
    __tracebackhide__ = True
    statements: list[str] = []
    seen: WeakSet[Any] = WeakSet()

    def executing(
        connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool
    ) -> None:
        if context is not None:
            # SQLAlchemy tells of each batch of rows, and on SQLite of each row
            if context in seen or context.execution_options.get(INTERNAL_OPTION):
                return
            seen.add(context)
        statements.append(statement)

    event.listen(Engine, 'before_cursor_execute', executing)
    try:
        yield statements
    finally:
        event.remove(Engine, 'before_cursor_execute', executing)
    _compare('SQL statements', expected, statements)


@contextmanager
def redis_ops(expected: int) -> Iterator[list[str]]:
    """Assert that the package sends so many Redis commands in a ``with`` block.

    The commands of all caches of this process count, also those that load a script. Those by which
    a client of the application's own asks Redis do not, nor do the statistics, which a thread
    sends now and then. Without Redis, there are none.

    :param expected: the exact number.
    :return: the commands so far.
    :raises AssertionError: for any other number; it lists the commands.
    """
    __tracebackhide__ = True
    commands: list[str] = []

    def sending(command: Command) -> None:
        if not OF_STATISTICS.get():
            commands.append(' '.join(map(_text, command)))

    with SENT.listening(sending):
        yield commands
    _compare('Redis commands', expected, commands)


def _text(argument: Any) -> str:
    if isinstance(argument, bytes):
        return argument.decode('utf-8', 'backslashreplace')
    return str(argument)


def _compare(what: str, expected: int, seen: list[str]) -> None:
    """Raise an error with a list of what was seen, if its length is not the expected number."""
    __tracebackhide__ = True
    if len(seen) != expected:
        cut = (one if len(one) <= SHOWN else f'{one[:SHOWN]} ...' for one in seen)
        lines = [f'  {number}. {one}' for number, one in enumerate(cut, 1)] or ['  none']
        raise AssertionError(
            '\n'.join([f'expected {expected} {what}, seen {len(seen)}:', *lines])
        )


class CreatorRuns:
    """The numbers of runs of creators, by property; made by :func:`creator_runs`.

    ``runs['users']`` is the number of runs of the property ``users``. A name may have its class
    (``'App.users'``) and its module, too. Without them, it is the sum of all classes.
    """

    def __init__(self, cache: OrmCache) -> None:
        self._cache = cache
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __getitem__(self, name: str) -> int:
        """Return the number of runs of a property.

        :raises PropertyError: if no property has that name.
        """
        counts = self.by_name
        known = self._cache.registry.names | counts.keys()
        found = [each for each in known if each == name or each.endswith(f'.{name}')]
        if not found:
            raise PropertyError(
                f'creator_runs: no property is named {name!r}; there are '
                f'{", ".join(sorted(known)) or "none"}. An OrmCache knows the properties that '
                'were read, and those of classes that it was told of by bind()'
            )
        return sum(counts.get(each, 0) for each in found)

    @property
    def total(self) -> int:
        """The number of all runs."""
        with self._lock:
            return self._counts.total()

    @property
    def by_name(self) -> dict[str, int]:
        """The numbers of runs by the properties' full names, of those that have run."""
        with self._lock:
            return dict(self._counts)

    def __repr__(self) -> str:
        counts = ', '.join(f'{name}: {count}' for name, count in sorted(self.by_name.items()))
        return f'<CreatorRuns {counts or "none"}>'

    def add(self, event: CacheEvent) -> None:
        """Count a run."""
        with self._lock:
            self._counts[event.name] += 1


@contextmanager
def creator_runs(target: Any) -> Iterator[CreatorRuns]:
    """Count the runs of a cache's creators in a ``with`` block, by property.

    Runs of request-cached properties and of cached views count, too, and so do those that raise an
    error. One call of a property's function ``many`` is one run.

    :param target: an app, a request, an :class:`.OrmCache`, or an object with cached properties.
    :return: the runs so far: ``assert runs['users'] == 1``.
    :raises ConfigurationError: if the target is none of these.
    """
    cache = cache_of(target, 'creator_runs')
    # so that the number of a property that was never read is 0, and a mistyped one an error
    for descriptor, _ in cached_descriptors(type(target)):
        cache.registry.property_of(*cache.resolve(descriptor, target))
    runs = CreatorRuns(cache)
    with cache.recordings.listening(runs.add, 'run'):
        yield runs
