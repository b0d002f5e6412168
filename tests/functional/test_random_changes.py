"""Random queries stay equal to their cached values, whatever random statements change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from sqlalchemy import delete, func, insert, literal, select, text, update
from sqlalchemy.orm import Session, aliased

from onegov_ormcache import OrmCacheApp
from tests.functional.change_tables import Base, Note, Remark, Room, Team, data
from tests.support.applications import Applications, committed
from tests.support.examples import examples


@st.composite
def queries(draw: st.DrawFn) -> Any:
    """A select of one to three tables: joined, in a subquery, in EXISTS, or in a CTE."""
    classes = draw(st.lists(st.sampled_from([Team, Note, Room, Remark]), min_size=1, max_size=3))
    main = aliased(classes[0]) if draw(st.booleans()) else classes[0]
    query: Any = select(func.count()).select_from(main)
    for cls in classes[1:]:
        inner: Any = aliased(cls)
        match draw(st.sampled_from(['exists', 'scalar', 'cte', 'join'])):
            case 'exists':
                query = query.where(select(inner.id).exists())
            case 'scalar':
                counted = select(func.count()).select_from(inner).scalar_subquery()
                query = query.add_columns(counted)
            case 'cte':
                common = select(inner.id).cte()
                counted = select(func.count()).select_from(common).scalar_subquery()
                query = query.add_columns(counted)
            case 'join':
                query = query.join(inner, inner.id == main.id, isouter=True)
    return query


@st.composite
def statements(draw: st.DrawFn) -> Any:
    """A function of a session that changes some table in some way."""
    cls = draw(st.sampled_from([Team, Note, Room, Remark]))
    number = draw(st.integers(1, 3))
    number += cls is Team  # desks fall back on team 1
    condition = cls.id == number
    new: dict[str, Any] = {'id': draw(st.integers(100, 10_000))}
    if cls is Team:
        new['code'] = f'c{new["id"]}'  # no two may have the same
    if cls is Remark:
        new['note_id'] = None
    kinds = ['flush', 'core', 'update', 'delete', 'text', 'from select', 'orm']
    kind = draw(st.sampled_from(kinds))

    def run(session: Session) -> None:
        if kind in ('flush', 'core', 'orm') and cls is not Remark:
            if session.get(cls, new['id']) is None:
                if kind == 'flush':
                    session.add(cls(**new))
                else:
                    session.execute(insert(cls if kind == 'orm' else cls.__table__).values(**new))
        elif kind == 'update' and cls in (Note, Room):
            team = session.scalar(select(func.min(Team.id)))
            session.execute(update(cls).where(condition).values(team_id=team))
        elif kind == 'text':
            sql = f'DELETE FROM {cls.__tablename__} WHERE id = :id'
            session.execute(text(sql), {'id': number})
        elif kind == 'from select' and cls in (Note, Room):
            top = session.scalar(select(func.max(cls.id))) or 0
            columns = ['id', 'text'] if cls is Note else ['id']
            chosen = [Team.id + top, literal('')] if cls is Note else [Team.id + top]
            session.execute(insert(cls).from_select(columns, select(*chosen)))
        else:
            session.execute(delete(cls).where(condition))

    return run


def rows_of(query: Any) -> Callable[[Any], list[list[Any]]]:
    """Return a creator whose value is the result of a query."""
    return lambda app: [list(row) for row in app.session().execute(query)]


@pytest.mark.filterwarnings('ignore::sqlalchemy.exc.SAWarning')
@examples(
    40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(draws=st.data())
def test_cached_is_uncached(
    applications: Applications, make_tenant: Callable[[str], str], draws: st.DataObject
) -> None:
    """Whatever is read, and whatever changes: what is cached equals what is not."""
    asked = draws.draw(st.lists(queries(), min_size=1, max_size=4))

    class Random(OrmCacheApp):
        pass

    for number, query in enumerate(asked):
        Random.orm_cached(policy='auto', name=f'q{number}')(rows_of(query))
    app = applications.start(Random, base=Base)
    tenant = make_tenant('random')
    try:
        with committed(app, tenant) as scope:
            for table in reversed(Base.metadata.sorted_tables):
                scope.session().execute(table.delete())
            for obj in data():
                scope.session().add(obj)
                scope.session().flush()
        for _ in range(3):
            changes = draws.draw(st.lists(statements(), min_size=1, max_size=3))
            with committed(app, tenant) as scope:
                for run in changes:
                    run(scope.session())
            with app.request_scope(tenant) as scope:
                for number, query in enumerate(asked):
                    fresh = [list(row) for row in scope.session().execute(query)]
                    assert getattr(app, f'q{number}') == fresh
    finally:
        app.close_orm_cache()
