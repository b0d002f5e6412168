"""Puts other work between two steps of the real code, in one thread and in a fixed order.

Scopes of several apps can be open in one thread, and a step can be waited for: so
every order of steps that threads or processes could take can be forced, and is the
same in every run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from onegov_ormcache import steps
from onegov_ormcache.steps import Step


class Died(BaseException):
    """The process ends here: nothing of it runs any more."""


@contextmanager
def before(step: Step, do: Callable[[], object]) -> Iterator[list[Step]]:
    """Do something the first time that a step is about to be taken in the block.

    :return: the steps that were taken; the block fails if the awaited one is not among them.
    """
    taken: list[Step] = []
    outer = steps.listener
    done = False

    def listen(taking: Step) -> None:
        nonlocal done
        taken.append(taking)
        if taking is step and not done:
            done = True
            listening, steps.listener = steps.listener, None
            try:
                do()
            finally:
                steps.listener = listening
        elif outer is not None:
            outer(taking)

    steps.listener = listen
    try:
        yield taken
    finally:
        steps.listener = outer
    assert done, f'the step {step!r} was not taken, only {taken}'


def die() -> None:
    """Ends the process, as far as one can end in a thread that goes on."""
    raise Died
