"""Reads by SQLAlchemy Core: CTEs, subqueries, and sets of rows."""

from __future__ import annotations

from sqlalchemy import (
    except_,
    func,
    intersect,
    literal,
    literal_column,
    select,
    tuple_,
    union,
    union_all,
)
from sqlalchemy.orm import Session

from ..entries import Entries
from .core import TEAM_NOTES, connected, nodes, notes, remarks, teams

entries = Entries()
read = entries.read


read(
    'core: cte',
    'notes',
    lambda s: connected(s, select((c := select(notes.c.text).cte('some')).c.text).select_from(c)),
)
read(
    'core: nested cte',
    TEAM_NOTES,
    lambda s: connected(
        s,
        select(
            select(select(notes.c.text, notes.c.team_id).cte('inner_one').c.text, literal(1)).cte(
                'outer_one'
            )
        ),
    ),
)
read(
    'core: cte that is not used',
    'teams',
    lambda s: connected(s, select(teams.c.code).add_cte(select(notes.c.text).cte('unused'))),
)
read(
    'core: cte with the name of a table',
    ['notes', 'teams'],
    lambda s: connected(s, select(select(notes.c.text).cte('teams'))),
)


def tree(session: Session) -> list[object]:
    """Return the nodes below the root, by a recursive CTE."""
    top = select(nodes.c.id, nodes.c.name).where(nodes.c.parent_id.is_(None)).cte(recursive=True)
    below = select(nodes.c.id, nodes.c.name).join(top, nodes.c.parent_id == top.c.id)
    return connected(session, select(top.union_all(below)))


read('core: recursive cte', 'nodes', tree)
read('core: subquery', 'notes', lambda s: connected(s, select(select(notes).subquery())))
read(
    'core: nested subqueries',
    'notes',
    lambda s: connected(s, select(select(select(notes.c.text).subquery()).subquery())),
)
read(
    'core: scalar subquery',
    TEAM_NOTES,
    lambda s: connected(s, select(teams.c.code, select(func.max(notes.c.text)).scalar_subquery())),
)
read(
    'core: subquery alone',
    'notes',
    lambda s: connected(s, select(select(func.max(notes.c.text)).scalar_subquery())),
)
read(
    'core: correlated exists',
    TEAM_NOTES,
    lambda s: connected(
        s,
        select(teams.c.code).where(
            select(notes.c.id).where(notes.c.team_id == teams.c.id).exists()
        ),
    ),
)
read(
    'core: not in',
    TEAM_NOTES,
    lambda s: connected(
        s,
        select(teams.c.code).where(
            teams.c.id.not_in(select(notes.c.team_id).where(notes.c.team_id.is_not(None)))
        ),
    ),
)
read(
    'core: tuple in',
    'notes',
    lambda s: connected(
        s,
        select(notes.c.text).where(
            tuple_(notes.c.id, notes.c.n).in_(select(notes.c.id, literal_column('1')))
        ),
    ),
)
read(
    'core: order by a subquery',
    TEAM_NOTES,
    lambda s: [
        row[0]
        for row in s.execute(
            select(teams.c.code).order_by(
                select(func.count(notes.c.id))
                .where(notes.c.team_id == teams.c.id)
                .correlate(teams)
                .scalar_subquery(),
                teams.c.id,
            )
        )
    ],
)
read(
    'core: limit by a subquery',
    ['notes', 'remarks'],
    lambda s: connected(
        s,
        select(notes.c.id)
        .order_by(notes.c.id)
        .limit(select(func.count()).select_from(remarks).scalar_subquery()),
    ),
)
read(
    'core: union',
    TEAM_NOTES,
    lambda s: connected(s, union(select(teams.c.code), select(notes.c.text))),
)
read(
    'core: union all',
    ['notes', 'remarks'],
    lambda s: connected(s, union_all(select(notes.c.text), select(remarks.c.text))),
)
read(
    'core: intersect',
    ['notes', 'teams'],
    lambda s: connected(s, intersect(select(teams.c.id), select(notes.c.team_id))),
)
read(
    'core: except',
    ['notes', 'teams'],
    lambda s: connected(s, except_(select(teams.c.id), select(notes.c.team_id))),
)
