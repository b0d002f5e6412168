"""What the database alone knows of the tenants of the matrix, and their rows.

Statements are for one tenant, which is the first schema of the search path.
"""

from __future__ import annotations

from collections.abc import Iterator

from .schema import LONG

#: Views and triggers that both databases have.
VIEWS = (
    'CREATE VIEW notes_view AS SELECT id, text FROM notes',
    (
        'CREATE VIEW teams_view AS SELECT code, count(notes.id) AS notes '
        'FROM teams LEFT JOIN notes ON notes.team_id = teams.id GROUP BY code'
    ),
)

SQLITE = (
    *VIEWS,
    'CREATE VIEW open_notes AS SELECT id, text, n FROM notes WHERE n < 100',
    (
        'CREATE TRIGGER open_notes_update INSTEAD OF UPDATE ON open_notes BEGIN '
        'UPDATE notes SET text = NEW.text, n = NEW.n WHERE id = OLD.id; END'
    ),
    (
        'CREATE TRIGGER rooms_entry AFTER UPDATE ON rooms BEGIN '
        "INSERT INTO entries (text) VALUES ('room ' || NEW.name); END"
    ),
)

POSTGRESQL = (
    *VIEWS,
    'CREATE VIEW open_notes AS SELECT id, text, n FROM notes WHERE n < 100',
    'CREATE VIEW nested_view AS SELECT text FROM notes_view',
    'CREATE VIEW counted_view AS SELECT (SELECT count(*) FROM remarks) AS n',
    'CREATE MATERIALIZED VIEW notes_now AS SELECT id, text FROM notes',
    'CREATE UNIQUE INDEX notes_now_id ON notes_now (id)',
    # partitions and children
    "CREATE TABLE measures_north PARTITION OF measures FOR VALUES IN ('north')",
    "CREATE TABLE measures_south PARTITION OF measures FOR VALUES IN ('south')",
    'CREATE TABLE measures_east (LIKE measures INCLUDING ALL)',
    'CREATE TABLE stocks_child () INHERITS (stocks)',
    # functions that read
    (
        'CREATE FUNCTION count_notes() RETURNS bigint LANGUAGE sql STABLE AS '
        "'SELECT count(*) + coalesce(sum(n), 0)::bigint FROM notes'"
    ),
    (
        'CREATE FUNCTION texts_of_notes() RETURNS SETOF text LANGUAGE sql STABLE AS '
        "'SELECT text FROM notes'"
    ),
    (
        'CREATE FUNCTION sum_notes() RETURNS bigint LANGUAGE plpgsql STABLE AS '
        "'BEGIN RETURN (SELECT count(*) + sum(n) FROM notes); END'"
    ),
    (
        'CREATE FUNCTION dynamic_notes(name text) RETURNS text LANGUAGE plpgsql STABLE AS '
        "$$ DECLARE found text; BEGIN EXECUTE format('SELECT string_agg(text, '','' ORDER BY id) "
        "FROM %I', name) INTO found; RETURN found; END $$"
    ),
    (
        'CREATE FUNCTION guarded_notes() RETURNS text LANGUAGE plpgsql AS '
        '$$ DECLARE found text; BEGIN '
        "BEGIN SELECT string_agg(text, ',' ORDER BY id) INTO found FROM notes; "
        "RAISE EXCEPTION 'away'; EXCEPTION WHEN OTHERS THEN NULL; END; RETURN found; END $$"
    ),
    (
        'CREATE FUNCTION secret_notes() RETURNS text LANGUAGE sql STABLE SECURITY DEFINER AS '
        "'SELECT string_agg(text, '','' ORDER BY id) FROM notes'"
    ),
    (
        'CREATE FUNCTION claimed_notes() RETURNS bigint LANGUAGE plpgsql IMMUTABLE AS '
        "'BEGIN RETURN (SELECT sum(n) FROM notes); END'"
    ),
    (
        'CREATE FUNCTION concat_step(state text, next text) RETURNS text LANGUAGE sql STABLE AS '
        "'SELECT concat(state, next, (SELECT count(*) FROM notes))'"
    ),
    'CREATE AGGREGATE concat_all(text) (SFUNC = concat_step, STYPE = text)',
    # functions that write
    (
        'CREATE FUNCTION add_note(what text) RETURNS bigint LANGUAGE sql AS '
        "'INSERT INTO notes (id, text, n) VALUES (90, what, 0) RETURNING id'"
    ),
    (
        'CREATE FUNCTION touch_notes(what text) RETURNS void LANGUAGE plpgsql AS '
        "'BEGIN UPDATE notes SET text = what WHERE id = 1; END'"
    ),
    (
        'CREATE FUNCTION touch_table(name text, what text) RETURNS void LANGUAGE plpgsql AS '
        "$$ BEGIN EXECUTE format('UPDATE %I SET text = %L WHERE id = 1', name, what); END $$"
    ),
    (
        'CREATE FUNCTION touch_guarded(what text) RETURNS void LANGUAGE plpgsql AS '
        '$$ BEGIN BEGIN UPDATE notes SET text = what WHERE id = 1; PERFORM 1 / 0; '
        'EXCEPTION WHEN division_by_zero THEN UPDATE remarks SET text = what WHERE id = 1; END; '
        'END $$'
    ),
    (
        'CREATE FUNCTION touch_secretly(what text) RETURNS void LANGUAGE sql SECURITY DEFINER AS '
        "'UPDATE notes SET text = what WHERE id = 1'"
    ),
    (
        'CREATE FUNCTION count_up() RETURNS integer LANGUAGE sql AS '
        "'UPDATE notes SET n = n + 1 WHERE id = 1 RETURNING n'"
    ),
    (
        'CREATE PROCEDURE rename_note(what text) LANGUAGE sql AS '
        "'UPDATE notes SET text = what WHERE id = 1'"
    ),
    (
        'CREATE PROCEDURE rename_and_commit(what text) LANGUAGE plpgsql AS '
        "'BEGIN UPDATE notes SET text = what WHERE id = 1; COMMIT; END'"
    ),
    # triggers and rules
    (
        'CREATE FUNCTION make_entry() RETURNS trigger LANGUAGE plpgsql AS '
        "$$ BEGIN INSERT INTO entries (text) VALUES (TG_TABLE_NAME || ' ' || TG_OP); "
        'RETURN NULL; END $$'
    ),
    (
        'CREATE TRIGGER rooms_entry AFTER INSERT OR UPDATE OR DELETE ON rooms '
        'FOR EACH ROW EXECUTE FUNCTION make_entry()'
    ),
    (
        'CREATE TRIGGER nodes_entry AFTER TRUNCATE ON nodes '
        'FOR EACH STATEMENT EXECUTE FUNCTION make_entry()'
    ),
    (
        'CREATE CONSTRAINT TRIGGER desks_entry AFTER UPDATE ON desks '
        'DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION make_entry()'
    ),
    (
        'CREATE RULE labels_entry AS ON UPDATE TO labels DO ALSO '
        "INSERT INTO entries (text) VALUES ('label ' || NEW.name)"
    ),
    'CREATE VIEW ruled AS SELECT id, text FROM notes',
    (
        'CREATE RULE ruled_insert AS ON INSERT TO ruled DO INSTEAD '
        'INSERT INTO remarks (id, note_id, text) VALUES (NEW.id, 1, NEW.text)'
    ),
    (
        'CREATE FUNCTION change_instead() RETURNS trigger LANGUAGE plpgsql AS '
        "$$ BEGIN UPDATE teams SET code = 'instead' WHERE code = OLD.code; RETURN NEW; END $$"
    ),
    (
        'CREATE TRIGGER teams_view_update INSTEAD OF UPDATE ON teams_view '
        'FOR EACH ROW EXECUTE FUNCTION change_instead()'
    ),
    # a server default that reads, and row level security
    'ALTER TABLE tickets ALTER name SET DEFAULT count_notes()::text',
    'ALTER TABLE secrets ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY',
    (
        'CREATE POLICY permitted ON secrets USING '
        '(EXISTS (SELECT FROM permits WHERE permits.secret_id = secrets.id)) WITH CHECK (true)'
    ),
)

#: The rows of a tenant, whose name they show.
ROWS = {
    'teams': "(1, '{who}-a'), (2, '{who}-b'), (3, '{who}-c')",
    'notes': "(1, 2, '{who} first', 1, 'body 1'), (2, 2, '{who} second', 2, 'body 2'), "
    "(3, 1, '{who} third', 3, 'body 3'), (4, NULL, '{who} fourth', 4, 'body 4')",
    'remarks': "(1, 1, '{who} remark'), (2, 3, '{who} other remark')",
    'rooms': "(1, 2, '{who} room'), (2, 1, '{who} hall')",
    'desks': "(1, 2, '{who} desk')",
    'labels': "(1, '{who}-b', '{who} label')",
    'badges': "(1, 1, '{who} badge')",
    'nodes': "(1, NULL, '{who} root'), (2, 1, '{who} branch'), (3, 2, '{who} leaf')",
    'people': "(1, 'person', '{who} person'), (2, 'employee', '{who} employee'), "
    "(3, 'guest', '{who} guest')",
    'employees': '(2, 100)',
    'membership': '(1, 1), (2, 2)',
    'shapes': "(1, '{who} shape')",
    'circles': "(2, '{who} circle', 5)",
    'tickets': "(1, '{who} ticket')",
    'entries': "(1, '{who} entry')",
    'measures': "(1, 'north', 10), (2, 'south', 20)",
    'stocks': "(1, '{who} stock')",
    'permits': '(1, 1)',
    'secrets': "(1, '{who} secret'), (2, '{who} deeper secret')",
    '"a,b"': "(1, '{who} comma')",
    '" lead"': "(1, '{who} lead')",
    '"""%(x)s"""': "(1, '{who} percent')",
    '"Äpfel"': "(1, '{who} apple')",
    LONG: "(1, '{who} long')",
}

#: Rows that differ between the databases: by type, or by relations that only one has.
ROWS_ON = {
    'postgresql': {
        'documents': "(1, '{who} document', 'DRAFT', '{{\"a\": 1}}', '{{x,y}}', 3, 1), "
        "(2, '{who} paper', 'PUBLIC', '{{\"a\": 2}}', '{{z}}', 4, 1)",
        'stocks_child': "(2, '{who} child')",
        'measures_east': "(3, 'east', 30)",
    },
    'sqlite': {
        'documents': "(1, '{who} document', 'DRAFT', '{{\"a\": 1}}', '[\"x\", \"y\"]', 3, 1), "
        "(2, '{who} paper', 'PUBLIC', '{{\"a\": 2}}', '[\"z\"]', 4, 1)",
    },
}

#: The columns of tables that also have columns of the database's own making.
COLUMNS = {'documents': '(id, title, state, data, words, n, version)'}

#: Sets the sequences, and what is computed from the rows, as they were.
AFTER_ROWS = (
    "SELECT setval('ticket_numbers', 100)",
    "SELECT setval('entries_id_seq', 100)",
    "SELECT setval(pg_get_serial_sequence('documents', 'id'), 100)",
    'REFRESH MATERIALIZED VIEW notes_now',
)

#: The rows of the shared table.
COUNTRIES = "(1, 'Switzerland'), (2, 'Chile')"


def row_statements(database: str, who: str) -> Iterator[str]:
    """Yield the statements that give a tenant its rows, whatever it has had.

    Triggers and foreign keys must be off meanwhile.

    :param database: ``'postgresql'`` or ``'sqlite'``.
    :param who: the name of the tenant, which its rows show.
    """
    rows = {**ROWS, **ROWS_ON[database]}
    for table in rows:
        if table != 'stocks_child':  # is emptied together with its parent
            yield f'DELETE FROM {table}'
    for table, values in rows.items():
        columns = COLUMNS.get(table, '')
        yield f'INSERT INTO {table} {columns} VALUES {values.format(who=who)}'
    if database == 'postgresql':
        yield from AFTER_ROWS
