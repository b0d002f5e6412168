"""Measures what the triggers that report changes cost another program's statements."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from time import perf_counter
from typing import Any

import psycopg

from tests.support.outside import install, outside

from .context import Context
from .measuring import interleaved
from .results import CaseResult, Column, Plot

Program = psycopg.Connection[Any]

#: The rows of the table, and those that a large statement changes.
ROWS = 10_000
MANY = 1000

TABLE = f"""
CREATE TABLE books (id integer PRIMARY KEY, shelf integer NOT NULL, title text);
INSERT INTO books SELECT n, n % 100, 'title ' || n FROM generate_series(1, {ROWS}) n
"""

#: The columns that the triggers tell, by the name of the contestant; None: it has no triggers.
CONTESTANTS: dict[str, dict[str, list[str]] | None] = {
    'no triggers': None,
    'triggers': {},
    'triggers that tell id': {'books': ['id']},
    'triggers that tell id and shelf': {'books': ['id', 'shelf']},
}

STATEMENTS = {
    'UPDATE of 1 row': "UPDATE books SET title = title || '' WHERE id = 1",
    '100 UPDATEs of 1 row, a transaction': "UPDATE books SET title = title || '' WHERE id = {n}",
    f'UPDATE of {MANY:,} rows': f"UPDATE books SET title = title || '' WHERE id <= {MANY}",
    f'INSERT of {MANY:,} rows': (
        "INSERT INTO books SELECT n, n % 100, 'new' "
        f'FROM generate_series({ROWS + 1}, {ROWS + MANY}) n'
    ),
}


def run(context: Context) -> CaseResult:
    result = CaseResult(
        'triggers',
        'Triggers',
        f'Another program changes a table of {ROWS:,} rows, without triggers, with those that '
        'name the changed tables, and with those that tell the values of columns in the changed '
        'rows, too. The time is that of the statements and their commit.',
        (Column('seconds', 'time', 'seconds'), Column('ratio', 'to no triggers', 'ratio')),
        Plot('ratio', log=False),
    )
    with ExitStack() as stack:
        programs: dict[str, Program] = {}
        for name, rows in CONTESTANTS.items():
            schema = stack.enter_context(context.schema())
            programs[name] = stack.enter_context(outside(context.dsn, schema))
            programs[name].execute(TABLE)
            if rows is not None:
                install(context.dsn, schema, ['books'], rows)
        for setting, statement in STATEMENTS.items():
            statements = [statement.format(n=n) for n in range(100 if '{n}' in statement else 1)]
            measures: dict[str, Callable[[], float]] = {
                name: partial(change, program, statements) for name, program in programs.items()
            }
            timings = interleaved(measures, context.sizes.rounds * 2)
            for name, timing in timings.items():
                ratio = timing.ratio(timings['no triggers'])
                result.add(setting, name, seconds=timing, ratio=ratio)
    return result


def change(program: Program, statements: list[str]) -> float:
    """Return the seconds that these statements take, in one transaction."""
    start = perf_counter()
    with program.transaction():
        for statement in statements:
            program.execute(statement)
    seconds = perf_counter() - start
    program.execute(f'DELETE FROM books WHERE id > {ROWS}')
    program.execute('VACUUM books')
    return seconds
