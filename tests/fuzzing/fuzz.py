"""Gives random inputs to a function, and counts them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from tests.support.examples import examples

T = TypeVar('T')


def fuzz(
    name: str, number: int, inputs: st.SearchStrategy[T], read: Callable[[T], object]
) -> None:
    """Call the function with so many inputs, and print how many were tried.

    :param number: the least number of inputs; the profile `long` tries more.
    """
    tried = 0

    @examples(number, suppress_health_check=list(HealthCheck))
    @given(inputs)
    def run(each: T) -> None:
        nonlocal tried
        tried += 1
        read(each)

    run()
    print(f'{name}: {tried:,} inputs')
    assert tried >= number, f'{name}: {tried} inputs, expected {number}'
