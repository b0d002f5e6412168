"""Foreign keys of the metadata tell what the database changes by itself."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Column, ForeignKey, ForeignKeyConstraint, Integer, MetaData, Table

from onegov_ormcache.database.cascades import cascades
from onegov_ormcache.database.statements import Statement


def make_table(metadata: MetaData, name: str, **references: Any) -> Table:
    """Define a table whose columns refer to others: `owner=('users.id', {'ondelete': ...})`."""
    columns: list[Any] = [Column('id', Integer, primary_key=True)]
    for column, (target, options) in references.items():
        columns.append(Column(column, Integer, ForeignKey(target, **options)))
    return Table(name, metadata, *columns)


def deleted(*tables: str) -> Statement:
    return Statement(writes=frozenset(tables), deletes=frozenset(tables))


def updated(table: str, *columns: str) -> Statement:
    return Statement(
        writes=frozenset((table,)), updates=frozenset((table, column) for column in columns)
    )


def inserted(table: str) -> Statement:
    return Statement(writes=frozenset((table,)))


@pytest.fixture
def metadata() -> MetaData:
    """Users with groups (CASCADE) and mails (SET NULL); a log that refers to neither."""
    metadata = MetaData()
    make_table(metadata, 'users')
    make_table(metadata, 'groups', owner=('users.id', {'ondelete': 'CASCADE'}))
    make_table(metadata, 'members', group=('groups.id', {'ondelete': 'cascade'}))
    make_table(metadata, 'mails', sender=('users.id', {'ondelete': 'SET NULL'}))
    make_table(metadata, 'notes', author=('users.id', {}))
    make_table(metadata, 'log')
    return metadata


def test_deletes_cascade_transitively(metadata: MetaData) -> None:
    """A DELETE reaches children, and children of deleted children."""
    assert cascades(metadata).affected(deleted('users')) == {
        'users',
        'groups',
        'members',
        'mails',
    }


def test_inserts_and_plain_updates_do_not_cascade(metadata: MetaData) -> None:
    """Only what a foreign key acts on reaches other tables."""
    found = cascades(metadata)
    assert found.affected(inserted('users')) == {'users'}
    assert found.affected(updated('users', 'id')) == {'users'}
    assert found.affected(Statement(reads=frozenset(('users',)))) == frozenset()


def test_unknown_changes_every_table(metadata: MetaData) -> None:
    """A statement that cannot be told counts as a change of all tables."""
    assert cascades(metadata).affected(Statement(unknown='?')) == set(metadata.tables)


@pytest.mark.parametrize('action', ['CASCADE', 'SET NULL', 'SET DEFAULT'])
def test_updates_cascade_for_referred_columns(action: str) -> None:
    """ON UPDATE acts if a referred column changes, or one that cannot be told."""
    metadata = MetaData()
    make_table(metadata, 'users')
    make_table(metadata, 'groups', owner=('users.id', {'onupdate': action}))
    found = cascades(metadata)
    assert found.affected(updated('users', 'id')) == {'users', 'groups'}
    assert found.affected(updated('users', '*')) == {'users', 'groups'}
    assert found.affected(updated('users', 'name')) == {'users'}
    assert found.affected(deleted('users')) == {'users'}


def test_set_null_goes_on_as_an_update_of_its_columns() -> None:
    """Rows that lose a reference are updated, which only ON UPDATE of that column follows."""
    metadata = MetaData()
    make_table(metadata, 'users')
    Table(
        'groups',
        metadata,
        Column('owner', ForeignKey('users.id', ondelete='SET NULL (owner)'), unique=True),
        Column('code', Integer, unique=True),
    )
    make_table(metadata, 'follows', it=('groups.owner', {'onupdate': 'CASCADE'}))
    make_table(metadata, 'ignores', it=('groups.code', {'onupdate': 'CASCADE'}))
    make_table(metadata, 'deletes', it=('groups.owner', {'ondelete': 'CASCADE'}))
    assert cascades(metadata).affected(deleted('users')) == {'users', 'groups', 'follows'}


def test_cycles_end() -> None:
    """Foreign keys to the same table or in a circle are followed once."""
    metadata = MetaData()
    options = {'ondelete': 'CASCADE', 'onupdate': 'CASCADE'}
    make_table(metadata, 'pages', parent=('pages.id', options))
    make_table(metadata, 'a', b=('b.id', options))
    make_table(metadata, 'b', a=('a.b', options))
    found = cascades(metadata)
    assert found.affected(deleted('pages')) == {'pages'}
    assert found.affected(updated('pages', 'id')) == {'pages'}
    assert found.affected(deleted('a')) == {'a', 'b'}
    assert found.affected(updated('b', 'id')) == {'a', 'b'}


def test_composite_keys_act_on_any_of_their_columns() -> None:
    """An update of one of several referred columns updates all that refer."""
    metadata = MetaData()
    Table('users', metadata, *(Column(name, Integer, primary_key=True) for name in 'xyz'))
    Table(
        'groups',
        metadata,
        Column('a', Integer),
        Column('b', Integer),
        ForeignKeyConstraint(['a', 'b'], ['users.x', 'users.y'], onupdate='CASCADE'),
    )
    found = cascades(metadata)
    assert found.affected(updated('users', 'y')) == {'users', 'groups'}
    assert found.affected(updated('users', 'z')) == {'users'}


def test_schemas_and_several_metadata() -> None:
    """Tables have the schema's name; a foreign key may go to another metadata's table."""
    one, other = MetaData(schema='town'), MetaData()
    make_table(one, 'users')
    make_table(one, 'groups', owner=('users.id', {'ondelete': 'CASCADE'}))
    make_table(other, 'mails', owner=('town.users.id', {'ondelete': 'CASCADE'}))
    make_table(other, 'lost', owner=('elsewhere.id', {'ondelete': 'CASCADE'}))
    found = cascades([one, other])
    assert found.affected(deleted('town.users')) == {'town.users', 'town.groups', 'mails'}
    assert found.affected(deleted('elsewhere')) == {'elsewhere', 'lost'}


def test_tables_defined_later_are_taken_in(metadata: MetaData) -> None:
    """A table that is mapped after the first statement was seen counts."""
    found = cascades(metadata)
    assert found.affected(deleted('log')) == {'log'}
    make_table(metadata, 'lines', log=('log.id', {'ondelete': 'CASCADE'}))
    assert found.affected(deleted('log')) == {'log', 'lines'}
