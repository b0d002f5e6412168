"""A model of the protocol: every order of its steps, for small cases.

A scenario is a handful of request scopes with a program each ('read A', 'change',
'commit', ...), and what the world may do to them: refuse a COMMIT, lose its answer,
end a process, lose or restore the store. :func:`explore` walks all orders,
breadth first, and gives the shortest way to a broken promise. The database's value
is the number of commits so far, so a value is stale if it is smaller than that
number was when its reader's transaction began.

The scopes' steps are those of :class:`onegov_ormcache.steps.Step`, in the order in
which the code takes them. Each guard of the protocol can be removed.

    python -m tests.consistency.model

``scenarios.py`` has the cases and the guards, ``states.py`` what is true at one moment.
``beginning.py``, ``reading.py`` and ``committing.py`` take the steps of scopes, ``store.py``
what happens to the store; ``exploration.py`` puts them in every order.
"""

from __future__ import annotations

from .exploration import explore
from .moves import LEFT_OUT
from .scenarios import SCENARIOS, Guard, Scenario

__all__ = ['LEFT_OUT', 'SCENARIOS', 'Guard', 'Scenario', 'explore']
