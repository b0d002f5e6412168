"""How many examples a property-based test takes; conftest.py has the profiles."""

from __future__ import annotations

from typing import Any

from hypothesis import settings


def examples(number: int, **more: Any) -> settings:
    """The settings of a test that takes so many examples, unless the profile is `long`.

    :param more: other settings of Hypothesis.
    """
    if settings.get_current_profile_name() == 'long':
        number = max(number, settings().max_examples)
    return settings(max_examples=number, **more)
