"""What a process must not take over from the one that it was forked from.

A fork copies the memory, with it open sockets, which two processes would use, locks whose holders
do not exist in the child, and threads that do not run there. Whoever keeps such things
registers, and forgets them when :func:`check` notices that the process is another one.

CPython calls functions after a fork of its own (``os.fork``, so gunicorn and ``multiprocessing``
too), but a server that forks in C does not call them (uWSGI). So :func:`check` is also called
before a connection leaves its pool, before a scope opens, and before a thread is needed. It takes
a fraction of a microsecond.

The same is done if gevent has replaced the locks of ``threading`` since they were made: a greenlet
that waits for a lock of the operating system stops all greenlets of its thread. This module does
not know who registers.
"""

from __future__ import annotations

import os
import threading
from typing import Any, Protocol
from weakref import WeakSet


class Heir(Protocol):
    """An object that forgets what it has from the parent; it must be weakly referable."""

    def after_fork(self) -> None:
        """Forget the parent's connections, locks and threads, and end none of them.

        Called in the child, before anything else of the package is used there, and if locks are
        of another kind than before.
        """


_HEIRS: WeakSet[Any] = WeakSet()

#: By process and kind of locks, the lock of the thread that lets the heirs forget. So no child
#: gets a held one.
_FORGETTING: dict[Any, Any] = {}


class _Origin:
    """The process whose connections and threads these are, and the kind of its locks."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.lock: Any = threading.Lock
        #: The process in which the heirs forget at present; None if they do not.
        self.heirs_of: int | None = None


_ORIGIN = _Origin()


def register(heir: Heir) -> None:
    """Call the object's ``after_fork()`` in each child, as long as it lives."""
    _HEIRS.add(heir)


def check() -> None:
    """Let the heirs forget what they have from the parent, if this process is a child that has
    not done so."""
    if _ORIGIN.process != os.getpid() or _ORIGIN.lock is not threading.Lock:
        _forget()


def _forget() -> None:
    process = os.getpid()
    kind: Any = threading.Lock
    # another thread that has noticed the fork waits; an heir may call `check()`
    with _FORGETTING.setdefault((process, kind), threading.RLock()):
        is_done = _ORIGIN.process == process and _ORIGIN.lock is kind
        if is_done or _ORIGIN.heirs_of == process:
            return
        _ORIGIN.heirs_of = process
        try:
            for heir in list(_HEIRS):
                heir.after_fork()
        finally:
            _ORIGIN.heirs_of = None
        _ORIGIN.process, _ORIGIN.lock = process, kind


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_forget)


class OwnLock:
    """A lock that a child does not get held: ``with lock.present: ...``

    :param is_reentrant: True if its holder may acquire it again.
    """

    __slots__ = '__weakref__', '_is_reentrant', 'present'

    def __init__(self, is_reentrant: bool = False) -> None:
        self._is_reentrant = is_reentrant
        self.after_fork()
        register(self)

    def after_fork(self) -> None:
        """Go on with a new lock, which nobody holds."""
        #: The lock of this process.
        self.present: Any = threading.RLock() if self._is_reentrant else threading.Lock()
