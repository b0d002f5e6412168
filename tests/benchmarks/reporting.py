"""The cases' results as a table for people, a file for programs, and a page of the docs."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .results import CaseResult, Row, text_of

PACKAGES = ('SQLAlchemy', 'psycopg', 'redis', 'dogpile.cache', 'morepath')
BEGIN = '.. The tables below are made by ``python -m tests.benchmarks --docs``.'
END = '.. Here ends what is made.'


def machine(quick: bool) -> dict[str, Any]:
    """Return the facts that a comparison with another run needs."""
    return {
        'python': platform.python_version(),
        'processors': os.cpu_count(),
        'packages': {name: version(name) for name in PACKAGES},
        'quick': quick,
        'load_before': round(os.getloadavg()[0], 1),
    }


def cells(result: CaseResult, row: Row) -> list[str]:
    values = [text_of(row.values.get(column.key), column.unit) for column in result.columns]
    return [row.setting, row.contestant, *values, row.note]


def show(console: Console, result: CaseResult) -> None:
    """Print a case's table."""
    table = Table(title=result.title, caption=result.about, title_justify='left')
    table.add_column('setting')
    table.add_column('contestant')
    for column in result.columns:
        table.add_column(column.title, justify='right')
    table.add_column('note')
    last = None
    for row in result.rows:
        if last not in (None, row.setting):
            table.add_section()
        last = row.setting
        table.add_row(*cells(result, row))
    console.print(table)


def write_json(path: Path, results: Iterable[CaseResult], about: dict[str, Any]) -> None:
    """Write everything, with the samples of each timing."""
    text = json.dumps({'machine': about, 'cases': [result.as_json() for result in results]})
    path.write_text(text + '\n', encoding='utf-8')


def list_table(result: CaseResult) -> list[str]:
    """A case's rows as a table of reStructuredText; an empty column of notes is left out."""
    noted = any(row.note for row in result.rows)
    heads = ['setting', 'contestant', *(column.title for column in result.columns)]
    lines = [heads + (['note'] if noted else [])]
    lines += [cells(result, row)[: None if noted else -1] for row in result.rows]
    text = ['.. list-table::', '   :header-rows: 1', '']
    for line in lines:
        for at, cell in enumerate(line):
            text.append(f'   {"*" if at == 0 else " "} - {cell}'.rstrip())
    return text


def section(result: CaseResult) -> list[str]:
    """A case as a section of the page."""
    lines = [result.title, '-' * len(result.title), '', result.about, '']
    if result.plot is not None:
        drawn = next(c.title for c in result.columns if c.key == result.plot.column)
        lines += [f'.. image:: plots/{result.name}.svg', f'   :alt: {result.title}: {drawn}', '']
    return [*lines, *list_table(result), '']


def write_docs(page: Path, results: Sequence[CaseResult], about: dict[str, Any]) -> None:
    """Replace the generated part of the page."""
    text = page.read_text(encoding='utf-8')
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    versions = ', '.join(f'{name} {number}' for name, number in about['packages'].items())
    made = [
        f'These are from a {"quick" if about["quick"] else "full"} run with Python '
        f'{about["python"]} on {about["processors"]} processors, {versions}.'
        + (
            f' The machine was busy with other work (a load of {about["load_before"]}).'
            if about['load_before'] > 1
            else ''
        ),
        '',
        *(line for result in results for line in section(result)),
    ]
    page.write_text('\n'.join([head + BEGIN, '', *made, END]) + tail, encoding='utf-8')
