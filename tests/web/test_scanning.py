"""Morepath's scans: of packages that use the cache, and of the package itself, without extras."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path
from types import ModuleType

import dectate
import morepath
import pytest

from tests.support.environments import make_environment

ROOT = Path(__file__).parent.parent.parent

#: A package whose modules register properties and views when they are imported.
MODULES = {
    '__init__.py': '',
    'app.py': """
from onegov_ormcache import OrmCacheApp, orm_cached

class App(OrmCacheApp):
    @orm_cached(policy='on-table-change:users')
    def users(self):
        return None
""",
    'models.py': """
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

class Base(DeclarativeBase):
    pass

class User(Base):
    __tablename__ = 'users'
    id: Mapped[int] = mapped_column(primary_key=True)
""",
    'settings.py': """
from .app import App
from .models import Base

@App.setting_section(section='orm_cache')
def settings():
    return {'base': Base}
""",
    'pages/__init__.py': '',
    'pages/views.py': """
from onegov_ormcache import *
from ..app import App

@App.path(path='')
class Root:
    pass

@App.json(model=Root, cached=True)
def view(self, request):
    return []

@App.orm_cached(policy='auto', name='pages')
def load_pages(app):
    return None
""",
    'tests/__init__.py': '',
    'tests/test_pages.py': 'import no_such_library',
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The package, of which nothing but the top is imported."""
    name = f'scanned_{tmp_path.name}'
    for path, text in MODULES.items():
        file = tmp_path / name / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding='utf-8')
    monkeypatch.syspath_prepend(tmp_path)
    yield __import__(name)
    for module in [each for each in sys.modules if each.partition('.')[0] == name]:
        del sys.modules[module]


def test_a_scan_registers_what_modules_declare(package: ModuleType) -> None:
    """Properties, views and settings of all modules are there after a scan, each once, also after
    a second scan."""
    morepath.scan(package)
    morepath.scan(package)
    app_class = sys.modules[f'{package.__name__}.app'].App
    app_class.commit()
    names = [action.name for action, _ in dectate.Query('orm_cached')(app_class)]
    assert sorted(names) == ['pages', 'users']
    assert [view.options.is_private for view in app_class.cached_views] == [True]


# the package itself

SCAN = """
import morepath, sys
import {module}

missing = []

def note(name, error):
    if not isinstance(error, ImportError):
        raise error
    # the package's own error names the extra, and is raised from that of the import
    lacking = error.name or getattr(error.__cause__, 'name', None) or '?'
    missing.append((name, lacking.partition('.')[0]))

morepath.scan({module}, {arguments})
print(missing)
"""


def scan(
    interpreter: Path | str, module: str, arguments: str, folder: Path = Path('/')
) -> list[tuple[str, str]]:
    """Scan a module in a process of its own; return the modules that could not be imported, each
    with the package that it lacks."""
    done = subprocess.run(
        [interpreter, '-c', SCAN.format(module=module, arguments=arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    found: list[tuple[str, str]] = eval(done.stdout)
    return found


@pytest.fixture(scope='module')
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the extra `morepath` alone."""
    folder = tmp_path_factory.mktemp('bare')
    extras = frozenset({'morepath'})
    return make_environment(folder, 'onegov_ormcache', extras, ROOT / 'onegov_ormcache')


def test_what_autoscan_would_scan_needs_no_extra(bare: Path) -> None:
    """The entry point that tells autoscan what to scan names what needs Morepath alone."""
    setup = ConfigParser()
    setup.read(ROOT / 'setup.cfg')
    _, _, module = setup['options.entry_points']['morepath'].partition('scan = ')
    assert scan(bare, module, 'handle_error=None') == []


def test_a_scan_of_everything_lacks_nothing_but_extras(bare: Path) -> None:
    """In an environment without further extras, a module that can't be imported says so by an
    ImportError, which a scan may pass over. Nobody needs it but who uses the extra."""
    missing = scan(bare, 'onegov_ormcache', 'handle_error=note')
    assert ('onegov_ormcache.zope', 'transaction') in missing
    lacking = {module for module, _ in missing}
    layers = ('core', 'database', 'tags', 'tiers', 'redis_client', 'web')
    assert not [name for name in lacking if name.split('.')[1] in layers]


def test_a_scan_of_everything_works_with_all_extras() -> None:
    """Where everything is installed, no module breaks a scan, and none does anything when it is
    imported."""
    assert scan(sys.executable, 'onegov_ormcache', 'handle_error=note', ROOT) == []
