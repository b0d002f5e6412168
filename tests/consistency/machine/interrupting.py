"""Does something between two steps of the real code, once, or after each COMMIT.

A block in which the awaited step is not taken does not fail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine

from onegov_ormcache import steps
from onegov_ormcache.steps import Step


class between:
    """Do something the first time that a step is about to be taken in the block."""

    def __init__(self, step: Step, do: Callable[[], object]) -> None:
        self._step = step
        self._do = do

    def __enter__(self) -> None:
        steps.listener = self._listen

    def __exit__(self, *exc_info: object) -> None:
        steps.listener = None

    def _listen(self, step: Step) -> None:
        if step is self._step:
            steps.listener = None
            self._do()


@contextmanager
def after_each_commit(engine: Engine, do: Callable[[Any], object]) -> Iterator[None]:
    """Do something when the database has committed, and the client has not heard of it."""
    watch = engine.dialect.do_commit.__self__  # type: ignore[attr-defined]
    original = watch._original

    def commit(checkout: Any) -> None:
        original.do_commit(checkout)
        do(checkout)

    watch._original = original._replace(do_commit=commit)
    try:
        yield
    finally:
        watch._original = original
