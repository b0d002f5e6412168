"""Reads by the ORM: each way to load a relationship, and each kind of inheritance."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import (
    Session,
    aliased,
    contains_eager,
    defaultload,
    immediateload,
    joinedload,
    lazyload,
    raiseload,
    selectin_polymorphic,
    selectinload,
    subqueryload,
    with_loader_criteria,
    with_polymorphic,
)

from ..entries import Entries, rows
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
)
from .orm import TEAM_NOTES

entries = Entries()
read = entries.read


def notes_of(session: Session, *options: object) -> list[object]:
    """Return the teams with the texts of their notes, loaded with these options."""
    teams = session.scalars(select(Team).options(*options)).unique().all()
    return rows([(team.code, sorted(note.text for note in team.notes)) for team in teams])


# relationships
read('relationship: lazy', TEAM_NOTES, lambda s: notes_of(s))
read('relationship: joinedload', TEAM_NOTES, lambda s: notes_of(s, joinedload(Team.notes)))
read(
    'relationship: inner joinedload',
    TEAM_NOTES,
    lambda s: notes_of(s, joinedload(Team.notes, innerjoin=True)),
)
read('relationship: selectinload', TEAM_NOTES, lambda s: notes_of(s, selectinload(Team.notes)))
read('relationship: subqueryload', TEAM_NOTES, lambda s: notes_of(s, subqueryload(Team.notes)))
read('relationship: immediateload', TEAM_NOTES, lambda s: notes_of(s, immediateload(Team.notes)))
read('relationship: lazyload', TEAM_NOTES, lambda s: notes_of(s, lazyload(Team.notes)))
read(
    'relationship: contains_eager',
    TEAM_NOTES,
    lambda s: rows(
        [
            (team.code, sorted(note.text for note in team.notes))
            for team in s.scalars(
                select(Team).join(Team.notes).options(contains_eager(Team.notes))
            ).unique()
        ]
    ),
)
read(
    'relationship: raiseload',
    ['teams'],
    lambda s: sorted(team.code for team in s.scalars(select(Team).options(raiseload('*')))),
)
read(
    'relationship: nested loads',
    ['teams', 'notes', 'remarks'],
    lambda s: rows(
        [
            (team.code, sorted(r.text for note in team.notes for r in note.remarks))
            for team in s.scalars(
                select(Team).options(selectinload(Team.notes).joinedload(Note.remarks))
            ).unique()
        ]
    ),
)
read(
    'relationship: defaultload',
    TEAM_NOTES,
    lambda s: notes_of(s, defaultload(Team.notes).load_only(Note.text)),
)
read(
    'relationship: and_',
    TEAM_NOTES,
    lambda s: notes_of(s, selectinload(Team.notes.and_(Note.n > 1))),
)
read(
    'relationship: with_loader_criteria',
    TEAM_NOTES,
    lambda s: notes_of(s, selectinload(Team.notes), with_loader_criteria(Note, Note.n > 1)),
)
read(
    'relationship: many-to-one',
    ['notes', 'teams'],
    lambda s: rows([(n.text, n.team and n.team.code) for n in s.scalars(select(Note))]),
)
read(
    'relationship: backref of rooms',
    ['rooms', 'teams'],
    lambda s: rows([(r.name, r.team and r.team.code) for r in s.scalars(select(Room))]),
)
MEMBERS = ['teams', 'people', 'membership']
read(
    'relationship: secondary',
    MEMBERS,
    lambda s: rows(
        [(team.code, sorted(p.name for p in team.people)) for team in s.scalars(select(Team))]
    ),
)
read(
    'relationship: secondary, selectinload',
    MEMBERS,
    lambda s: rows(
        [
            (person.name, sorted(t.code for t in person.teams))
            for person in s.scalars(select(Person).options(selectinload(Person.teams)))
        ]
    ),
)
read(
    'relationship: secondary, joinedload',
    MEMBERS,
    lambda s: rows(
        [
            (team.code, sorted(p.name for p in team.people))
            for team in s.scalars(select(Team).options(joinedload(Team.people))).unique()
        ]
    ),
)
read(
    'relationship: association proxy',
    MEMBERS,
    lambda s: rows([(team.code, sorted(team.people_names)) for team in s.scalars(select(Team))]),
)
read(
    'relationship: any',
    TEAM_NOTES,
    lambda s: sorted(s.scalars(select(Team.code).where(Team.notes.any(Note.n > 1)))),
)
read(
    'relationship: has',
    TEAM_NOTES,
    lambda s: sorted(s.scalars(select(Note.text).where(Note.team.has(Team.code.like('%b'))))),
)
read(
    'relationship: secondary any',
    MEMBERS,
    lambda s: sorted(s.scalars(select(Team.code).where(Team.people.any()))),
)
read(
    'relationship: self reference',
    'nodes',
    lambda s: rows(
        [(n.name, sorted(c.name for c in n.children)) for n in s.scalars(select(Node))]
    ),
)
read(
    'relationship: join to itself',
    'nodes',
    lambda s: rows(
        s.execute(select(Node.name, (a := aliased(Node)).name).join(Node.parent.of_type(a)))
    ),
)
read(
    'relationship: with_parent',
    ['notes', 'teams'],
    lambda s: (
        sorted(s.scalars(select(Note.text).where(Note.team_id == team.id)))
        if (team := s.get(Team, 2))
        else None
    ),
)

# inheritance
PEOPLE = ['people', 'employees']
read(
    'inheritance: base',
    ['people'],
    lambda s: rows([(type(p).__name__, p.name) for p in s.scalars(select(Person))]),
)
read(
    'inheritance: joined',
    PEOPLE,
    lambda s: rows([(p.name, p.salary) for p in s.scalars(select(Employee))]),
)
read('inheritance: single', ['people'], lambda s: sorted(s.scalars(select(Guest.name))))
read(
    'inheritance: lazy columns of a subclass',
    PEOPLE,
    lambda s: rows([(p.name, getattr(p, 'salary', None)) for p in s.scalars(select(Person))]),
)
read(
    'inheritance: with_polymorphic',
    PEOPLE,
    lambda s: rows(
        [
            (p.name, getattr(p, 'salary', None))
            for p in s.scalars(select(with_polymorphic(Person, '*')))
        ]
    ),
)
read(
    'inheritance: selectin_polymorphic',
    PEOPLE,
    lambda s: rows(
        [
            (p.name, getattr(p, 'salary', None))
            for p in s.scalars(select(Person).options(selectin_polymorphic(Person, [Employee])))
        ]
    ),
)
read(
    'inheritance: column of the subclass',
    PEOPLE,
    lambda s: sorted(s.scalars(select(Employee.salary))),
)
read(
    'inheritance: of_type',
    [*PEOPLE, 'teams', 'membership'],
    lambda s: rows(
        s.execute(select(Team.code, Employee.salary).join(Team.people.of_type(Employee)))
    ),
)
read(
    'inheritance: concrete',
    ['circles'],
    lambda s: rows([(c.name, c.radius) for c in s.scalars(select(Circle))]),
)
read(
    'inheritance: concrete, polymorphic',
    ['shapes', 'circles'],
    lambda s: rows([(type(o).__name__, o.name) for o in s.scalars(select(Shape))]),
)
