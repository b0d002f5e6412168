"""Hypothesis strategies for whatever the serializer takes: `ANY_VALUE`, and its parts."""

from __future__ import annotations

from datetime import UTC, timedelta, timezone
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from hypothesis import strategies as st
from markupsafe import Markup
from psycopg.types.multirange import Multirange
from psycopg.types.range import Int4Range
from psycopg.types.range import Range as PsycopgRange
from sqlalchemy.dialects.postgresql import MultiRange, Range

from tests.tiers.serializable import (
    ZURICH,
    Bits,
    BitString,
    Color,
    Level,
    Money,
    Mood,
    Node,
    Outer,
    Point,
    Right,
    Slotted,
    rows,
)

TEXTS = st.text(st.characters(exclude_categories=()))
ZONES = st.one_of(
    st.none(),
    st.sampled_from([UTC, ZURICH, ZoneInfo('America/St_Johns')]),
    st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(timezone),
    st.builds(timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23)), TEXTS),
)
FOLDS = st.sampled_from([0, 1])
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**66), 2**66),
    st.floats(),
    TEXTS,
    st.binary(),
    st.builds(lambda t, z, f: t.replace(tzinfo=z, fold=f), st.datetimes(), ZONES, FOLDS),
    st.builds(lambda t, z, f: t.replace(tzinfo=z, fold=f), st.times(), ZONES, FOLDS),
    st.dates(),
    st.timedeltas(),
    st.decimals().filter(lambda number: not number.is_snan()),
    st.uuids(),
    st.sampled_from([*Color, *Level, *Mood, *Right, Right(0), Bits.A | Bits.B, Outer.Inner.X]),
    TEXTS.map(Markup),
    st.ip_addresses(),
    st.text('01').map(BitString),
)
BOUNDS = st.sampled_from(['[)', '(]', '[]', '()'])
EMPTY = st.booleans()


def ranges(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.builds(lambda a, b, c, d: Range(a, b, bounds=c, empty=d), parts, parts, BOUNDS, EMPTY),
        st.builds(PsycopgRange, parts, parts, BOUNDS, EMPTY),
        st.builds(Int4Range, parts, parts, BOUNDS, EMPTY),
    )


KEYS = st.recursive(
    LEAVES,
    lambda parts: st.one_of(
        st.lists(parts, max_size=3).map(tuple),
        st.frozensets(parts, max_size=3),
        st.builds(Point, parts, parts),
        st.builds(Slotted, parts),
        st.tuples(parts, parts).map(lambda pair: rows(pair)[0]),
        st.tuples(parts, parts).map(lambda pair: rows(pair)[0]._mapping),
        ranges(parts),
    ),
    max_leaves=4,
)


def containers(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.lists(parts),
        st.lists(parts).map(tuple),
        st.lists(st.tuples(parts, parts)),
        st.lists(st.tuples(parts, parts)).map(lambda pairs: rows(*pairs)),
        st.lists(st.tuples(parts, parts)).map(
            lambda pairs: [row._mapping for row in rows(*pairs)]
        ),
        st.lists(st.builds(Point, parts, parts)),
        st.lists(ranges(parts)),
        st.lists(ranges(parts)).map(MultiRange),
        st.lists(st.builds(PsycopgRange, parts, parts, BOUNDS, EMPTY)).map(Multirange),
        st.dictionaries(TEXTS, parts),
        st.dictionaries(KEYS, parts),
        st.sets(KEYS),
        st.frozensets(KEYS),
        st.builds(Point, parts, parts),
        st.builds(Money, st.just(Decimal(1)), parts),
        st.builds(Node, TEXTS, st.lists(parts)),
    )


ANY_VALUE = st.recursive(st.one_of(LEAVES, KEYS), containers, max_leaves=20)
