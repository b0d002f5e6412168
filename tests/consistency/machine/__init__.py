"""A state machine: random orders of what applications do, and what they must be given.

An example runs in a world (``worlds.py``), on many request scopes (``open_scopes.py``).
``promise.py`` knows what a scope may be given, ``actions.py`` does something in a scope and
has it checked, ``rules.py`` chooses what is done, also between two steps of the real code
(``interrupting.py``).
"""

from __future__ import annotations

import pytest

# an assert that fails shows its values, as in a test file
pytest.register_assert_rewrite(*(f'{__name__}.{name}' for name in ('promise', 'actions', 'rules')))
