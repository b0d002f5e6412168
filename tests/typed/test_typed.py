"""The typed modules can be imported, and a project of a user gets the same types as they do."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent

import pytest
import sqlalchemy

import onegov_ormcache
from tests.support.environments import make_environment

FOLDER = Path(__file__).parent

MODULES = sorted(
    path.stem for path in FOLDER.glob('*.py') if path.stem not in ('__init__', 'test_typed')
)

IS_2_0 = sqlalchemy.__version__.startswith('2.0.')

#: A module about rows, whose types are written otherwise in the two versions of SQLAlchemy.
ROWS = """
from typing import assert_type

from onegov_ormcache import OrmCacheApp, orm_cached, request_cached
from sqlalchemy import Row, Select, select
from sqlalchemy.orm import Query

from program import User


class App(OrmCacheApp):
    @orm_cached(policy=User)
    def selected(self) -> Select[{columns}]:
        return select(User.id, User.name)

    @orm_cached(policy=User)
    def queried(self) -> Query[Row[{columns}]]:
        return self.session().query(User.id, User.name)

    @orm_cached(policy=User, frozen=True)
    def frozen(self, id: int) -> Select[{columns}]:
        return select(User.id, User.name)

    @request_cached
    def of_request(self) -> Select[{columns}]:
        return select(User.id, User.name)

    @request_cached(merge=True)
    def merged(self) -> Select[{columns}]:
        return select(User.id, User.name)


def check(app: App) -> None:
    assert_type(app.selected, tuple[Row[{columns}], ...])
    assert_type(app.queried, tuple[Row[{columns}], ...])
    assert_type(app.frozen(1), tuple[Row[{columns}], ...])
    assert_type(app.of_request, tuple[Row[{columns}], ...])
    assert_type(app.merged, tuple[Row[{columns}], ...])
"""


@pytest.mark.parametrize('name', MODULES)
def test_typed_module_can_be_imported(name: str) -> None:
    """What type checkers accept in class bodies is accepted when they run."""
    assert import_module(f'{__package__}.{name}')


def test_typed_apps_can_be_committed() -> None:
    """Directives, request classes with types, and annotations of what directives install."""
    for name in ('directives', 'program'):
        module = import_module(f'{__package__}.{name}')
        app_class = module.App if name == 'directives' else module.Town
        app_class.commit()
        assert app_class.request_class.orm_cache_base is module.Request
    plain = import_module(f'{__package__}.directives').Plain
    plain.commit()
    assert plain.request_class.orm_cache_base is onegov_ormcache.OrmCacheRequest
    assert isinstance(module.Town.user_count, onegov_ormcache.OrmCacheDescriptor)


@pytest.fixture(scope='module')
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's project: a program, and an environment with the package, what it needs, and what
    the page on types tells to install."""
    folder = tmp_path_factory.mktemp('project')
    shutil.copy(FOLDER / 'program.py', folder)
    columns = 'tuple[int, str]' if IS_2_0 else 'int, str'
    (folder / 'of_rows.py').write_text(ROWS.format(columns=columns), encoding='utf-8')
    page = (FOLDER.parent.parent / 'docs' / 'typing.rst').read_text(encoding='utf-8')
    if IS_2_0:
        page = page.replace('Select[int, str]', 'Select[tuple[int, str]]')
    blocks = re.findall(r'code-block:: python\n\n((?: {3}.*\n|\n)+)', page)
    assert len(blocks) == 3
    (folder / 'page.py').write_text(dedent(''.join(blocks)), encoding='utf-8')
    config = {
        'typeCheckingMode': 'strict',
        'enableTypeIgnoreComments': False,
        'reportUnnecessaryTypeIgnoreComment': 'error',
        'exclude': ['.venv'],
    }
    (folder / 'pyrightconfig.json').write_text(json.dumps(config), encoding='utf-8')
    (told,) = re.findall(r'^   \$ python -m pip install mypy (.+)$', page, re.MULTILINE)
    package = Path(onegov_ormcache.__file__).parent
    make_environment(
        folder / '.venv', package.name, frozenset({'morepath'}), package, others=told.split()
    )
    return folder


def check(project: Path, *command: str) -> None:
    """Run a type checker in a project, without what the environment says of another one."""
    done = subprocess.run(
        command,
        cwd=project,
        env={key: value for key, value in os.environ.items() if key != 'MYPYPATH'},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(300)
@pytest.mark.skipif(not find_spec('mypy'), reason='mypy is not installed')
def test_project_passes_mypy(project: Path) -> None:
    """A user's program passes mypy's strict mode, with no plugin and no configuration."""
    python = str(project / '.venv/bin/python')
    options = '--strict', '--config-file=', '--python-executable', python
    check(project, sys.executable, '-m', 'mypy', *options, 'program.py', 'of_rows.py', 'page.py')


@pytest.mark.timeout(300)
@pytest.mark.skipif(not find_spec('basedpyright'), reason='basedpyright is not installed')
def test_project_passes_pyright(project: Path) -> None:
    """A user's program passes pyright's strict mode."""
    python = str(project / '.venv/bin/python')
    check(project, sys.executable, '-m', 'basedpyright', '--pythonpath', python)
