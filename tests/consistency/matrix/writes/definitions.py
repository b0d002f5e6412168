"""Writes that change definitions: columns, tables, views, functions, types and schemas.

After each of them the tenants are made anew.
"""

from __future__ import annotations

from sqlalchemy import Column, Integer, MetaData, Table, text
from sqlalchemy.orm import Session

from ..entries import POSTGRESQL, Entries
from ..schema import ONE, RUN, TWO, Badge

entries = Entries()


def sql(session: Session, *statements: str) -> None:
    """Execute texts, one after the other."""
    for statement in statements:
        session.execute(text(statement))


for _name, _shows, _statements in (
    ('column added', 'catalog', ("ALTER TABLE notes ADD more text DEFAULT 'changed'",)),
    ('column renamed', 'catalog', ('ALTER TABLE notes RENAME body TO rest',)),
    ('column read is renamed', 'core: mappings', ('ALTER TABLE notes RENAME n TO number',)),
    (
        'column changed by its new type',
        'orm: all of badges',
        ("ALTER TABLE badges ALTER name TYPE text USING 'changed'",),
    ),
    ('table renamed', 'of badges', ('ALTER TABLE badges RENAME TO gone',)),
    (
        'tables exchanged',
        'of badges',
        (
            'CREATE TABLE new_badges (LIKE badges)',
            "INSERT INTO new_badges VALUES (1, 1, 'changed')",
            'ALTER TABLE badges RENAME TO old_badges',
            'ALTER TABLE new_badges RENAME TO badges',
        ),
    ),
    ('table dropped', 'of badges', ('DROP TABLE badges',)),
    (
        'table dropped and made',
        'of badges',
        (
            'DROP TABLE badges',
            'CREATE TABLE badges (id int PRIMARY KEY, team_id int, name text)',
        ),
    ),
    (
        'table moved to another schema',
        'of badges',
        (
            'ALTER TABLE badges DROP CONSTRAINT badges_pkey',
            'ALTER SEQUENCE badges_id_seq RENAME TO badges_of_one_id_seq',
            'ALTER TABLE badges RENAME TO badges_of_one',
            f'ALTER TABLE badges_of_one SET SCHEMA {TWO}',
        ),
    ),
    (
        'table of another schema moved here',
        'of badges',
        (
            'DROP TABLE badges',
            f'ALTER TABLE {TWO}.badges SET SCHEMA {ONE}',
        ),
    ),
    ('partition detached', 'measures', ('ALTER TABLE measures DETACH PARTITION measures_north',)),
    (
        'partition attached',
        'measures',
        ("ALTER TABLE measures ATTACH PARTITION measures_east FOR VALUES IN ('east')",),
    ),
    ('partition dropped', 'measures', ('DROP TABLE measures_south',)),
    ('child detached', 'stocks', ('ALTER TABLE stocks_child NO INHERIT stocks',)),
    (
        'view replaced',
        'view: plain',
        ("CREATE OR REPLACE VIEW notes_view AS SELECT id, 'changed'::varchar AS text FROM notes",),
    ),
    (
        'function replaced',
        'function: sql',
        (
            (
                'CREATE OR REPLACE FUNCTION count_notes() RETURNS bigint LANGUAGE sql STABLE AS '
                "'SELECT 5::bigint'"
            ),
        ),
    ),
    (
        'function replaced, of another table',
        'function: sql',
        (
            (
                'CREATE OR REPLACE FUNCTION count_notes() RETURNS bigint LANGUAGE sql STABLE AS '
                "'SELECT 100 + count(*) FROM teams'"
            ),
        ),
    ),
    ('function dropped', 'function: plpgsql', ('DROP FUNCTION sum_notes()',)),
    (
        'function overloaded',
        '',
        ("CREATE FUNCTION sum_notes(x int) RETURNS int LANGUAGE sql AS 'SELECT 1'",),
    ),
    (
        'rule of SELECT',
        'view: plain',
        (
            (
                'CREATE OR REPLACE RULE "_RETURN" AS ON SELECT TO notes_view DO INSTEAD '
                'SELECT id, text FROM notes WHERE n > 2'
            ),
        ),
    ),
    ('policy dropped', 'row level', ('DROP POLICY permitted ON secrets',)),
    ('policy changed', 'row level', ('ALTER POLICY permitted ON secrets USING (true)',)),
    ('row security turned off', 'row level', ('ALTER TABLE secrets DISABLE ROW LEVEL SECURITY',)),
    (
        'trigger made, and fired',
        'of entries',
        (
            (
                'CREATE TRIGGER badges_entry AFTER UPDATE ON badges '
                'FOR EACH ROW EXECUTE FUNCTION make_entry()'
            ),
            "UPDATE badges SET name = 'changed'",
        ),
    ),
    (
        'trigger turned off',
        'of rooms',
        (
            'ALTER TABLE rooms DISABLE TRIGGER rooms_entry',
            "UPDATE rooms SET name = 'changed'",
        ),
    ),
    (
        'rule made, and used',
        'of entries',
        (
            (
                'CREATE RULE badges_entry AS ON UPDATE TO badges DO ALSO '
                "INSERT INTO entries (text) VALUES ('rule')"
            ),
            "UPDATE badges SET name = 'changed'",
        ),
    ),
    (
        'foreign key made, and used',
        'of badges',
        (
            (
                'ALTER TABLE badges DROP CONSTRAINT badges_team_id_fkey, '
                'ADD FOREIGN KEY (team_id) REFERENCES teams ON DELETE CASCADE'
            ),
            'DELETE FROM teams WHERE id = 1',
        ),
    ),
    ('index made', '', ('CREATE INDEX ON notes (text)',)),
    ('type renamed', '', ('ALTER TYPE state RENAME TO new_state',)),
    ('label of a type added', '', ("ALTER TYPE state ADD VALUE 'LATER'",)),
    (
        'label of a type renamed',
        'orm: enum',
        ("ALTER TYPE state RENAME VALUE 'DRAFT' TO 'SKETCH'",),
    ),
    ('default changed', '', ("ALTER TABLE notes ALTER text SET DEFAULT 'changed'",)),
    (
        'generated column',
        'orm: generated',
        (
            (
                'ALTER TABLE documents DROP doubled, '
                'ADD doubled int GENERATED ALWAYS AS (n * 3) STORED'
            ),
        ),
    ),
    ('sequence restarted', 'last value', ('ALTER SEQUENCE ticket_numbers RESTART WITH 700',)),
    (
        'materialised view made anew',
        'view: materialised',
        (
            "UPDATE notes SET text = 'changed'",
            'DROP MATERIALIZED VIEW notes_now',
            'CREATE MATERIALIZED VIEW notes_now AS SELECT id, text FROM notes',
        ),
    ),
    ('comment', '', ("COMMENT ON TABLE notes IS 'changed'",)),
    ('privilege', '', ('GRANT SELECT ON notes TO PUBLIC',)),
    ('table made', '', ('CREATE TABLE more (id int)',)),
    ('table made of a query', '', ('CREATE TABLE more AS SELECT * FROM notes',)),
    (
        'schemas exchanged',
        'orm: all',
        (
            f'ALTER SCHEMA {ONE} RENAME TO {RUN}_between',
            f'ALTER SCHEMA {TWO} RENAME TO {ONE}',
            f'ALTER SCHEMA {RUN}_between RENAME TO {TWO}',
        ),
    ),
    ('DDL in DO', 'of badges', ("DO $$ BEGIN EXECUTE 'DROP TABLE badges'; END $$",)),
):
    entries.write(
        f'definition: {_name}',
        _shows,
        lambda s, statements=_statements: sql(s, *statements),
        databases=POSTGRESQL,
        rebuilds=True,
    )

for _name, _statement in (
    ('renamed', f'ALTER SCHEMA {ONE} RENAME TO {RUN}_away'),
    ('dropped', f'DROP SCHEMA {ONE} CASCADE'),
):
    entries.write(
        f'definition: schema {_name}',
        'orm: all',
        lambda s, statement=_statement: sql(s, statement),
        databases=POSTGRESQL,
        rebuilds=True,
        removes=True,
    )

entries.write(
    'definition: drop_all and create_all', 'of badges', lambda s: again(s), rebuilds=True
)
entries.write(
    'definition: create by SQLAlchemy',
    '',
    lambda s: Table('more', MetaData(), Column('id', Integer)).create(s.connection()),
    rebuilds=True,
)


def again(session: Session) -> None:
    Badge.__table__.drop(session.connection())
    Badge.__table__.create(session.connection())
