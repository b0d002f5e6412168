"""Forks of the test's process: by Python, and as a server in C makes them."""

from __future__ import annotations

import ctypes
import os
import pickle
import sys
import time
from collections.abc import Callable
from typing import Any

#: Seconds for which no other thread asks for the lock of the interpreter while C code forks.
UNDISTURBED = 0.5


def fork_in_c() -> int:
    """Fork as uWSGI and the like do: CPython calls none of the functions that
    `os.register_at_fork` was given, and the lock of the interpreter is kept.

    If another thread has asked for that lock, the child waits for that thread, which it does not
    have. A server forks before it has such threads.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(UNDISTURBED)
    try:
        time.sleep(2 * before)  # until those who asked by the interval before have had the lock
        return _fork()
    finally:
        sys.setswitchinterval(before)


_fork: Callable[[], int] = ctypes.PyDLL(None).fork

#: By kind, a function that forks.
FORKS: dict[str, Callable[[], int]] = {'os.fork': os.fork, 'fork in C': fork_in_c}


def in_child(fork: Callable[[], int], work: Callable[[], Any]) -> Any:
    """Return what `work` returns in a child process; raise what it raises there.

    The child ends as a killed process does: nothing is closed. What it returns or raises must
    be picklable.
    """
    read, write = os.pipe()
    pid = fork()
    if pid == 0:
        try:
            os.write(write, pickle.dumps(_outcome(work)))
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, 'rb') as answer:
        said = answer.read()
    os.waitpid(pid, 0)
    assert said, 'the child has ended without an answer'
    is_error, outcome = pickle.loads(said)
    if is_error:
        raise outcome
    return outcome


def _outcome(work: Callable[[], Any]) -> tuple[bool, Any]:
    try:
        return False, work()
    except BaseException as error:
        return True, type(error)(str(error))
