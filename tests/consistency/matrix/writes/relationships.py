"""Writes by the ORM: relationships, and each kind of inheritance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import delete, insert, select, update
from sqlalchemy.orm import Session, joinedload, selectinload

from ..entries import Entries
from ..schema import (
    Circle,
    Employee,
    Guest,
    Node,
    Note,
    Person,
    Room,
    Shape,
    Team,
    membership,
)
from .orm import changed

entries = Entries()
write = entries.write


# inheritance
write('inheritance: base row', 'inheritance: base', lambda s: changed(s, Person, name='changed'))
write(
    'inheritance: joined, own column',
    'inheritance: joined',
    lambda s: changed(s, Employee, 2, salary=7),
)
write(
    'inheritance: joined, base column',
    'inheritance: joined',
    lambda s: changed(s, Employee, 2, name='changed'),
)
write(
    'inheritance: joined, insert',
    'inheritance: joined',
    lambda s: s.add(Employee(id=90, name='changed', salary=9)),
)
write(
    'inheritance: joined, delete',
    'inheritance: joined',
    lambda s: ((e := s.get_one(Employee, 2)).teams.clear(), s.delete(e)),
)
write(
    'inheritance: joined, update statement',
    'inheritance: joined',
    lambda s: s.execute(update(Employee).values(salary=8)),
)
write(
    'inheritance: base, update statement',
    'inheritance: base',
    lambda s: s.execute(update(Person).values(name='changed')),
)
write(
    'inheritance: single, update',
    'inheritance: single',
    lambda s: changed(s, Guest, 3, name='changed'),
)
write(
    'inheritance: single, update statement',
    'inheritance: single',
    lambda s: s.execute(update(Guest).values(name='changed')),
)
write(
    'inheritance: single, insert',
    'inheritance: single',
    lambda s: s.add(Guest(id=90, name='changed')),
)
write('inheritance: concrete', 'inheritance: concrete', lambda s: changed(s, Circle, 2, radius=9))
write('inheritance: concrete base', 'concrete, poly', lambda s: changed(s, Shape, name='changed'))


# relationships
def edit(session: Session, model: Any, key: Any, work: Callable[[Any], Any]) -> None:
    """Work on one object, and flush."""
    obj = session.get_one(model, key)
    work(obj)
    session.flush()


write(
    'relationship: append',
    'relationship: lazy',
    lambda s: edit(s, Team, 1, lambda t: t.notes.append(Note(id=90, text='changed'))),
)
write(
    'relationship: append of a known object',
    'relationship: lazy',
    lambda s: edit(s, Team, 1, lambda t: t.notes.append(s.get_one(Note, 4))),
)
write(
    'relationship: remove an orphan',
    'orm: all',
    lambda s: edit(s, Team, 1, lambda t: t.notes.remove(t.notes[0])),
)
write('relationship: clear', 'orm: all', lambda s: edit(s, Team, 2, lambda t: t.notes.clear()))
write(
    'relationship: move', 'relationship: lazy', lambda s: changed(s, Note, team=s.get_one(Team, 3))
)
write(
    'relationship: parent of a new child',
    'relationship: many',
    lambda s: s.add(Note(id=90, text='changed', team=s.get_one(Team, 1))),
)
write('relationship: set to None', 'backref of rooms', lambda s: changed(s, Room, team=None))
write(
    'relationship: without cascade',
    'backref of rooms',
    lambda s: edit(s, Team, 2, lambda t: t.rooms.clear()),
)
write(
    'relationship: replaced list',
    'backref of rooms',
    lambda s: changed(s, Team, 3, rooms=list(s.scalars(select(Room)))),
)
write(
    'relationship: cascade of a delete',
    'orm: all of remarks',
    lambda s: s.delete(s.get_one(Note, 1)),
)
write(
    'relationship: passive deletes', 'orm: all of labels', lambda s: s.delete(s.get_one(Team, 2))
)
write(
    'relationship: child of a node',
    'self reference',
    lambda s: edit(s, Node, 1, lambda node: node.children.append(Node(id=90, name='changed'))),
)
write('relationship: node moved', 'self reference', lambda s: changed(s, Node, 3, parent_id=1))
write('relationship: node deleted', 'self reference', lambda s: s.delete(s.get_one(Node, 2)))
SECONDARY = 'relationship: secondary'
write(
    'secondary: append',
    SECONDARY,
    lambda s: edit(s, Person, 1, lambda person: person.teams.append(s.get_one(Team, 2))),
)
write(
    'secondary: append by the backref',
    SECONDARY,
    lambda s: edit(s, Team, 3, lambda team: team.people.append(s.get_one(Person, 1))),
)
write('secondary: remove', SECONDARY, lambda s: edit(s, Team, 1, lambda t: t.people.clear()))
write(
    'secondary: new object',
    SECONDARY,
    lambda s: edit(s, Team, 1, lambda team: team.people.append(Person(id=90, name='changed'))),
)
write(
    'secondary: association proxy',
    SECONDARY,
    lambda s: edit(s, Team, 1, lambda team: team.people_names.append('changed')),
)
write('secondary: delete of a person', SECONDARY, lambda s: s.delete(s.get_one(Person, 1)))
write(
    'secondary: rows',
    'secondary',
    lambda s: s.execute(insert(membership).values(person_id=3, team_id=3)),
)
write('secondary: delete of rows', 'secondary', lambda s: s.execute(delete(membership)))
write(
    'relationship: loaded eagerly, then changed',
    'orm: all',
    lambda s: setattr(
        s.scalars(select(Team).where(Team.id == 2).options(joinedload(Team.notes)))
        .unique()
        .one()
        .notes[0],
        'text',
        'changed',
    ),
)
write(
    'relationship: of two levels',
    'orm: all of remarks',
    lambda s: setattr(
        s.scalars(select(Team).where(Team.id == 2).options(selectinload(Team.notes)))
        .one()
        .notes[0]
        .remarks[0],
        'text',
        'changed',
    ),
)
