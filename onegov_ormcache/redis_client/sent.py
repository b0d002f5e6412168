"""Tells which commands are sent to Redis. Only tests listen.

This module does not know what a command does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeAlias

from ..forks import OwnLock

#: The name of a command, and its arguments.
Command: TypeAlias = tuple[Any, ...]


#: True while commands for the statistics are sent, which are no part of the cache's work.
OF_STATISTICS: ContextVar[bool] = ContextVar('of_statistics', default=False)


class _Listener(NamedTuple):
    receive: Callable[[Command], None]


class SentCommands:
    """Those who listen to the commands of all clients of this process; there is one.

    Blocks that listen may overlap, and end in any order.
    """

    def __init__(self) -> None:
        # replaced and never changed, so that `tell` needs no lock
        self._listeners: tuple[_Listener, ...] = ()
        self._lock = OwnLock()

    def tell(self, command: Command) -> None:
        """Call each listener with a command that is about to be sent."""
        for listener in self._listeners:
            listener.receive(command)

    @contextmanager
    def listening(self, receive: Callable[[Command], None]) -> Iterator[None]:
        """Call a function with each command while the block runs, in the thread that sends it."""
        listener = _Listener(receive)
        with self._lock.present:
            self._listeners = (*self._listeners, listener)
        try:
            yield
        finally:
            with self._lock.present:
                self._listeners = tuple(each for each in self._listeners if each is not listener)


SENT = SentCommands()
