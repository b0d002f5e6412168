"""The layers of the package: no import points up, and nothing imports in a circle.

`lint-imports` checks that by the rules in pyproject.toml; these tests also show that it finds
imports that break the rules.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / 'onegov_ormcache'

#: By case: the file that is changed, a line that must not be there, and the rule it breaks.
FORBIDDEN = {
    'up': ('tags/snapshot.py', 'from ..core.policies import table_tags', 'No import points up'),
    'up, in a function': (
        'core/reading.py',
        'def late() -> None:\n    from ..web.app import OrmCacheApp',
        'No import points up',
    ),
    'up, by way of the package': (
        'tags/settling.py',
        'from .. import OrmCache',
        'No import points up',
    ),
    'beside, for type checking': (
        'tiers/shared.py',
        'if TYPE_CHECKING:\n    from ..tags.memory import MemoryTagStore',
        'No import points up',
    ),
    'circle': (
        'core/properties.py',
        'from .descriptors import orm_cached',
        'No circles between modules',
    ),
    'circle, for type checking': (
        'web/directives.py',
        'if TYPE_CHECKING:\n    from .app import OrmCacheApp',
        'No circles between modules',
    ),
    'Morepath': ('core/scope.py', 'import morepath', 'Morepath, Dectate and WebOb'),
    'Morepath, through another room': (
        'core/cache.py',
        'from ..web.request import OrmCacheRequest',
        'Morepath, Dectate and WebOb',
    ),
    'a module outside of all rooms': ('elsewhere.py', 'import os', 'No import points up'),
}


def lint(folder: Path) -> str:
    """Return what `lint-imports` says of the package in a folder."""
    shutil.copy(ROOT / 'pyproject.toml', folder)
    run = 'from importlinter.cli import lint_imports_command; lint_imports_command()'
    command = [sys.executable, '-c', run, '--no-cache', '--no-logo']
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert ('BROKEN' in done.stdout) == (done.returncode != 0), done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder with a copy of the package, to be changed."""
    ignored = shutil.ignore_patterns('__pycache__')
    shutil.copytree(PACKAGE, tmp_path / PACKAGE.name, ignore=ignored)
    return tmp_path


def test_all_rules_are_kept(copy: Path) -> None:
    """The package as it is keeps all rules."""
    said = lint(copy)
    assert said.count(' KEPT') == 3
    assert 'BROKEN' not in said


@pytest.mark.parametrize('case', FORBIDDEN)
def test_rule_is_broken_by(copy: Path, case: str) -> None:
    """An import that is not allowed is found, wherever in a module it stands."""
    file, line, rule = FORBIDDEN[case]
    with (copy / PACKAGE.name / file).open('a', encoding='utf-8') as module:
        module.write(f'\n\nfrom typing import TYPE_CHECKING\n\n{line}\n')
    broken = [said for said in lint(copy).splitlines() if said.endswith(' BROKEN')]
    assert any(rule in said for said in broken), broken


# names of Python, PostgreSQL and the package: OF_CACHES may match in a line that has one
NOT_MEANT = re.compile(r'lru_cache|functools import cache|@cache|onegov_ormcache|CREATE.*POLICY')
OF_CACHES = re.compile(
    r'\b(caches?|cached|evict\w*|tiers?|stamps?|polic(y|ies)|tags?|propert(y|ies) of)\b'
)


@pytest.mark.parametrize('path', sorted((PACKAGE / 'database').glob('*.py')), ids=lambda p: p.stem)
def test_database_knows_nothing_of_caches(path: Path) -> None:
    """No sentence and no name in the layer of the database speaks of what is cached."""
    lines = path.read_text(encoding='utf-8').splitlines()
    assert not [
        line for line in lines if OF_CACHES.search(line) and not NOT_MEANT.search(line)
    ]
