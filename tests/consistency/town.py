"""The application of the state machine, what it must show, and what can be done to its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from sqlalchemy import delete, insert, text, update

from onegov_ormcache import OrmCacheApp, orm_cached, request_cached
from tests.support.models import Document, Group, User, membership


class Row(NamedTuple):
    """One user, with its document, if it has one, and its membership."""

    name: str
    title: str | None = None
    public: bool = False
    member: bool = False


#: The rows of a tenant, by slot.
State = dict[int, Row]


class Identity(NamedTuple):
    """The identity of the user who reads."""

    role: str


class Town(OrmCacheApp):
    """An application with a property for each kind of policy."""

    identity = Identity('member')

    @orm_cached(policy='on-table-change:users')
    def users(self) -> Any:
        return [row.name for row in self.session().query(User.name).order_by(User.id)]

    @orm_cached(policy=['on-table-change:documents', User])
    def people(self) -> Any:
        query = self.session().query(User.name, Document.title)
        return [tuple(row) for row in query.join(Document).order_by(User.id)]

    @orm_cached(policy=lambda obj: isinstance(obj, Document) and obj.state == 'public')
    def public(self) -> Any:
        query = self.session().query(Document.title).filter(Document.state == 'public')
        return [row.title for row in query.order_by(Document.id)]

    @orm_cached(policy='auto')
    def members(self) -> Any:
        query = self.session().query(membership.c.user_id).order_by(membership.c.user_id)
        return [row.user_id for row in query]

    @orm_cached(policy='on-table-change:groups')
    def nested(self) -> Any:
        return {'users': self.users, 'public': self.public}

    @orm_cached(policy='on-table-change:users', by_role=True)
    def greeting(self) -> Any:
        return [self.identity.role, self.session().query(User).count()]

    @request_cached
    def kept(self) -> Any:
        return [row.name for row in self.session().query(User.name).order_by(User.id)]

    @orm_cached(policy='auto')
    def framed(self) -> Any:
        return ['framed', *self.kept]


#: The value that each property must give, by the state of the database and the role.
EXPECTED: dict[str, Callable[[State, str], Any]] = {
    'users': lambda s, role: [s[i].name for i in sorted(s)],
    'people': lambda s, role: [(s[i].name, s[i].title) for i in sorted(s) if s[i].title],
    'public': lambda s, role: [s[i].title for i in sorted(s) if s[i].title and s[i].public],
    'members': lambda s, role: [i for i in sorted(s) if s[i].member],
    'greeting': lambda s, role: [role, len(s)],
    'framed': lambda s, role: ['framed', *(s[i].name for i in sorted(s))],
}

#: Properties that are made of other properties; each part is checked by itself.
PARTS = {'nested': ('users', 'public')}

PROPERTIES = (*EXPECTED, *PARTS)


def parts_of(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The properties that a value is made of, with the value of each."""
    if name in PARTS:
        for part in PARTS[name]:
            yield part, value[part]
    else:
        yield name, value


# changes of a row


def possible(row: Row | None) -> dict[str, Callable[[Any, int, Any, str], Row | None]]:
    """The changes that make sense for a row, by name."""
    if row is None:
        return {'orm add': orm_add, 'core add': core_add, 'text add': text_add}
    changes: dict[str, Callable[[Any, int, Any, str], Row | None]] = {
        'orm rename': orm_rename,
        'core rename': core_rename,
        'text rename': text_rename,
        'orm delete': orm_delete,
        'text delete': text_delete,
        'member': orm_leave if row.member else orm_join,
        'core member': core_leave if row.member else core_join,
    }
    if row.title is None:
        return {**changes, 'orm document': orm_document, 'core document': core_document}
    return {
        **changes,
        'orm publish': orm_publish,
        'core publish': core_publish,
        'query publish': query_publish,
        'orm title': orm_title,
        'orm document delete': orm_no_document,
        'core document delete': core_no_document,
    }


def orm_add(session: Any, slot: int, row: Any, n: str) -> Row:
    session.add(User(id=slot, name=f'{slot}-{n}'))
    return Row(f'{slot}-{n}')


def core_add(session: Any, slot: int, row: Any, n: str) -> Row:
    session.execute(insert(User), [{'id': slot, 'name': f'{slot}-{n}'}])
    return Row(f'{slot}-{n}')


def text_add(session: Any, slot: int, row: Any, n: str) -> Row:
    statement = text('INSERT INTO users (id, name) VALUES (:id, :name)')
    session.connection().execute(statement, {'id': slot, 'name': f'{slot}-{n}'})
    return Row(f'{slot}-{n}')


def orm_rename(session: Any, slot: int, row: Row, n: str) -> Row:
    user = session.get(User, slot)
    user.name = f'{slot}-{n}'
    return row._replace(name=f'{slot}-{n}')


def core_rename(session: Any, slot: int, row: Row, n: str) -> Row:
    session.execute(update(User).where(User.id == slot).values(name=f'{slot}-{n}'))
    return row._replace(name=f'{slot}-{n}')


def text_rename(session: Any, slot: int, row: Row, n: str) -> Row:
    statement = text('UPDATE users SET name = :name WHERE id = :id')
    session.execute(statement, {'id': slot, 'name': f'{slot}-{n}'})
    return row._replace(name=f'{slot}-{n}')


def orm_delete(session: Any, slot: int, row: Row, n: str) -> None:
    session.delete(session.get(User, slot))


def text_delete(session: Any, slot: int, row: Row, n: str) -> None:
    session.execute(text('DELETE FROM users WHERE id = :id'), {'id': slot})


def orm_join(session: Any, slot: int, row: Row, n: str) -> Row:
    user = session.get(User, slot)
    user.groups.append(session.get(Group, 1))
    return row._replace(member=True)


def orm_leave(session: Any, slot: int, row: Row, n: str) -> Row:
    user = session.get(User, slot)
    user.groups.clear()
    return row._replace(member=False)


def core_join(session: Any, slot: int, row: Row, n: str) -> Row:
    session.execute(insert(membership).values(user_id=slot, group_id=1))
    return row._replace(member=True)


def core_leave(session: Any, slot: int, row: Row, n: str) -> Row:
    session.execute(delete(membership).where(membership.c.user_id == slot))
    return row._replace(member=False)


def orm_document(session: Any, slot: int, row: Row, n: str) -> Row:
    session.add(Document(id=slot, kind='document', title=n, state='public', owner_id=slot))
    return row._replace(title=n, public=True)


def core_document(session: Any, slot: int, row: Row, n: str) -> Row:
    values = {'id': slot, 'kind': 'document', 'title': n, 'state': 'secret', 'owner_id': slot}
    session.execute(insert(Document.__table__).values(values))
    return row._replace(title=n, public=False)


def orm_publish(session: Any, slot: int, row: Row, n: str) -> Row:
    document = session.get(Document, slot)
    document.state = 'secret' if row.public else 'public'
    return row._replace(public=not row.public)


def core_publish(session: Any, slot: int, row: Row, n: str) -> Row:
    state = 'secret' if row.public else 'public'
    session.execute(update(Document).where(Document.id == slot).values(state=state))
    return row._replace(public=not row.public)


def query_publish(session: Any, slot: int, row: Row, n: str) -> Row:
    state = 'secret' if row.public else 'public'
    session.query(Document).filter(Document.id == slot).update({'state': state})
    return row._replace(public=not row.public)


def orm_title(session: Any, slot: int, row: Row, n: str) -> Row:
    document = session.get(Document, slot)
    document.title = n
    return row._replace(title=n)


def orm_no_document(session: Any, slot: int, row: Row, n: str) -> Row:
    session.delete(session.get(Document, slot))
    return row._replace(title=None, public=False)


def core_no_document(session: Any, slot: int, row: Row, n: str) -> Row:
    session.execute(delete(Document).where(Document.id == slot))
    return row._replace(title=None, public=False)
