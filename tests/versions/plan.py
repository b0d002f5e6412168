"""Decides which versions run together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple


class Combination(NamedTuple):
    """One version of each."""

    python: str
    sqlalchemy: str
    postgres: str
    store: str


def plan(
    pythons: Sequence[str],
    sqlalchemys: Sequence[str],
    postgreses: Sequence[str],
    stores: Sequence[str],
    is_whole: bool = False,
) -> list[Combination]:
    """Return combinations in which each Python meets each SQLAlchemy, and each server is used.

    :param pythons: the versions that there are, of this and the others: oldest first.
    :param is_whole: all combinations instead.
    """
    if is_whole:
        return [Combination(*each) for each in product(pythons, sqlalchemys, postgreses, stores)]
    pairs = list(product(pythons, sqlalchemys))
    if not (pairs and postgreses and stores):
        return []
    count = max(len(pairs), len(postgreses), len(stores))
    return [
        Combination(
            *pairs[number % len(pairs)],
            # the oldest come together, and the newest
            postgreses[number % len(postgreses)],
            stores[number % len(stores)],
        )
        for number in range(count)
    ]
