"""Reads of single rows by arguments, under policies for rows, also of rows that do not exist."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Column, Table, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from onegov_ormcache import rows as rows_policy

from ..entries import POSTGRESQL, Entries, rows
from ..schema import (
    Apple,
    Circle,
    Comma,
    Country,
    Desk,
    Document,
    Employee,
    Entry,
    Label,
    Long,
    Measure,
    Node,
    Note,
    Percent,
    Person,
    Remark,
    Room,
    Secret,
    Shape,
    State,
    Stock,
    Team,
    Ticket,
    membership,
)

entries = Entries()


def read(
    name: str, policy: Any, arguments: list[Any], run: Callable[..., Any], **options: Any
) -> None:
    """Add a read with one value for each of some arguments; a tuple stands for several."""
    given = tuple(each if isinstance(each, tuple) else (each,) for each in arguments)
    entries.read(
        f'rows: {name}',
        policy if isinstance(policy, list) else [policy],
        lambda session: [run(session, *each) for each in given],
        arguments=given,
        run_one=run,
        **options,
    )


def of(model: Any, *columns: Any) -> Callable[..., Any]:
    """Return a function that reads all rows whose columns equal its arguments."""
    table = model if isinstance(model, Table) else model.__table__

    def run(session: Session, *values: Any) -> Any:
        criteria = [column == value for column, value in zip(columns, values, strict=True)]
        return rows(session.execute(select(table).where(*criteria)))

    return run


def objects(column: InstrumentedAttribute[Any]) -> Callable[..., Any]:
    """Return a function that reads the entities whose column equals its argument."""
    model = column.class_
    # other columns are of other tables: expressions, and those of classes that inherit
    keys = [
        attribute.key
        for attribute in model.__mapper__.column_attrs
        if isinstance(attribute.columns[0], Column)
    ]

    def run(session: Session, value: Any) -> Any:
        return rows(
            [type(found).__name__, *(getattr(found, key) for key in keys)]
            for found in session.scalars(select(model).where(column == value))
        )

    return run


IDS = [1, 2, 4, 90, 94, None]

for _name, _columns, _arguments in (
    ('key', [Note.id], IDS),
    ('foreign key', [Note.team_id], [1, 2, 3, None]),
    ('foreign key without an object', [Remark.note_id], [1, 3, 4, 90]),
    ('text', [Team.code], ['one-a', 'one-b', 'two-b', 'changed', 'instead', '']),
    ('ON UPDATE CASCADE', [Label.code], ['one-b', 'two-b', 'changed', 'instead', None]),
    ('ON DELETE SET NULL', [Room.team_id], [1, 2, None]),
    ('ON DELETE SET DEFAULT', [Desk.team_id], [1, 2, None]),
    ('reference of a table to itself', [Node.parent_id], [1, 2, 3, 90, None]),
    ('keys that refer', [Node.id], [1, 2, 3, 90]),
    ('sequence', [Ticket.id], [1, 70, 90, 100, 101, 102]),
    ('identity', [Document.id], [1, 2, 100, 101]),
    ('enum', [Document.state], list(State)),
    ('number', [Document.n], [1, 3, 4, 50]),
    ('entries', [Entry.text], ['one entry', 'room changed', 'rooms UPDATE', 'rooms INSERT']),
    ('partitions', [Measure.id, Measure.region], [(1, 'north'), (2, 'south'), (3, 'east')]),
    ('one column of a key', [Measure.region], ['north', 'south', 'east']),
    ('children of the database', [Stock.id], [1, 2, 90]),
    ('comma', [Comma.id], [1, 90]),
    ('percent', [Percent.id], [1, 90]),
    ('not ASCII', [Apple.id], [1, 90]),
    ('long name', [Long.id], [1, 90]),
    ('concrete', [Circle.id], [1, 2, 90]),
):
    read(_name, rows_policy(*_columns), _arguments, of(_columns[0].class_, *_columns))

for _key, _column in (('secondary', 'team_id'), ('secondary, other side', 'person_id')):
    read(
        _key,
        rows_policy(membership.c[_column]),
        [1, 2, 3, 90],
        of(membership, membership.c[_column]),
    )
read(
    'composite key of a Table',
    rows_policy(membership.c.person_id, membership.c.team_id),
    [(1, 1), (2, 2), (1, 2), (90, 2)],
    of(membership, membership.c.person_id, membership.c.team_id),
)
read(
    'shared table',
    rows_policy(Country.id),
    [1, 2, 90],
    of(Country, Country.id),
    databases=POSTGRESQL,
)
read(
    'row level security',
    [rows_policy(Secret.id), 'permits'],
    [1, 2, 90],
    of(Secret, Secret.id),
)
for _attribute, _arguments in (
    (Note.id, IDS),
    (Person.id, [1, 2, 3, 90]),
    (Employee.id, [1, 2, 3, 90]),
    (Person.kind, ['person', 'employee', 'guest']),
    (Person.name, ['one person', 'one employee', 'changed']),
):
    read(f'objects by {_attribute}', rows_policy(_attribute), _arguments, objects(_attribute))
read(
    'objects of concrete classes',
    [rows_policy(Shape.id), rows_policy(Circle.id)],
    [1, 2, 90],
    objects(Shape.id),
)


def with_remarks(session: Session, id: int) -> Any:
    note = session.get(Note, id)
    return note and [note.text, sorted(remark.text for remark in note.remarks)]


read(
    'of two tables', [rows_policy(Note.id), rows_policy(Remark.note_id)], [1, 3, 90], with_remarks
)


def with_team(session: Session, id: int) -> Any:
    note = session.get(Note, id)
    return note and [note.text, note.team and note.team.code]


read('and a table', [rows_policy(Note.id), 'teams'], [1, 2, 4, 90], with_team)
