"""The example project, copied to an empty folder: it installs, passes its tests and is served."""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import yaml
from packaging.requirements import Requirement

from tests.support.environments import install, make_environment, make_wheel
from tests.support.newcomer import Newcomer, environment_with, free_port
from tests.support.servers import RedisServer, drop_schemas

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / 'fixtures' / 'example_project'

pytestmark = [
    pytest.mark.skipif(
        not (shutil.which('curl') and shutil.which('bash')), reason='needs curl and bash'
    ),
    pytest.mark.timeout(300),  # the first test waits for an installation
]


def requirements(project: Path) -> list[Requirement]:
    """Return what the project needs, for its tests and on servers too."""
    told = tomllib.loads((project / 'pyproject.toml').read_text(encoding='utf-8'))['project']
    extras = told['optional-dependencies']
    lines = [*told['dependencies'], *(line for each in extras.values() for line in each)]
    return [Requirement(line) for line in lines]


@pytest.fixture(scope='module')
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the project, copied and installed, and with what the
    project says it needs. It has nothing else but setuptools, which installs it."""
    project = tmp_path_factory.mktemp('copied') / 'project'
    shutil.copytree(EXAMPLE, project, ignore=shutil.ignore_patterns('__pycache__'))
    needed = requirements(project)
    extras = {e for each in needed if each.name == 'onegov_ormcache' for e in each.extras}
    others = [each.name for each in needed if each.name != 'onegov_ormcache']
    made = make_environment(
        project.parent / 'venv',
        'onegov_ormcache',
        frozenset(extras),
        others=[*others, 'setuptools'],
    )
    install(made, make_wheel(ROOT, project.parent))
    install(made, '-e', project)
    return made


@pytest.fixture
def newcomer(interpreter: Path) -> Iterator[Newcomer]:
    """Somebody who works in the copy."""
    project = interpreter.parent.parent.parent / 'project'
    made = Newcomer(project, environment_with(interpreter), free_port())
    yield made
    made.close()
    shutil.rmtree(project / 'villages', ignore_errors=True)


def test_readme(newcomer: Newcomer) -> None:
    """What the README shows is what one sees: tests that pass, and a page from the cache."""
    newcomer.follow((EXAMPLE / 'README.rst').read_text(encoding='utf-8'), skipped=r'.*pip install')
    assert 'python -m pytest -q' in newcomer.ran
    assert any('cache-status' in command for command in newcomer.ran)


def test_commands(newcomer: Newcomer) -> None:
    """The commands list properties, and say in a sentence what is wrong."""
    newcomer.follow("""
.. code-block:: console

   $ noticeboard-query orm_cached table=notices
   App: <class 'noticeboard.run.make_app.<locals>.Configured'>
     File "...app.py", line ...
     @orm_cached(policy=Notice)

     File "...app.py", line ...
     @orm_cached(policy=rows(Notice.id))

   $ noticeboard-create 'no/village' 2>&1
   usage: ...
   noticeboard-create: error: ...no/village...
   $ NOTICEBOARD_SETTINGS=nothing.yml noticeboard-create bern 2>&1
   usage: ...
   noticeboard-create: error: ...nothing.yml...
   $ NOTICEBOARD_SETTINGS=README.rst noticeboard-query orm_cached 2>&1
   noticeboard-query: error: ...
""")


def test_no_traceback(newcomer: Newcomer) -> None:
    """A second process on SQLite, and a village created beside the server, are told why not."""
    newcomer.follow("""
.. code-block:: console

   $ noticeboard-create bern
   bern: 0 notices
   $ python -m waitress --listen=127.0.0.1:8080 --call noticeboard.run:make_application &
   Serving on
   $ noticeboard-create chur 2>&1
   usage: ...
   noticeboard-create: error: ...redis_url...
""")


def test_autoscan(newcomer: Newcomer) -> None:
    """`morepath.autoscan` finds the views of an installed project, and scans the package with no
    extra but those that the project needs."""
    program = (
        'import morepath, sys; morepath.autoscan(); '
        'print(sorted(name for name in sys.modules if name.startswith("noticeboard")))'
    )
    newcomer.follow(f"""
.. code-block:: console

   $ python -c '{program}'
   ['noticeboard', 'noticeboard.app', ...'noticeboard.views']
""")


def test_several_processes(
    newcomer: Newcomer, postgres_dsn: str, own_redis: RedisServer
) -> None:
    """With PostgreSQL and Redis in the settings, two processes share what they have cached, and
    one sees what was changed in the other."""
    village = f'v{uuid4().hex[:12]}'
    settings = yaml.safe_load((EXAMPLE / 'settings.yml').read_text(encoding='utf-8'))
    settings['orm_cache'].update(dsn=postgres_dsn, redis_url=own_redis.url, namespace=village)
    (newcomer.folder / 'servers.yml').write_text(yaml.safe_dump(settings), encoding='utf-8')
    newcomer.environment['NOTICEBOARD_SETTINGS'] = 'servers.yml'
    ports = free_port(), free_port()
    first, second = (f'http://{village}.localhost:{port}/' for port in ports)
    serve = 'python -m waitress --call --listen=127.0.0.1'
    program = 'noticeboard.run:make_application'
    try:
        newcomer.follow(f"""
.. code-block:: console

   $ noticeboard-create {village}
   {village}: 0 notices
   $ {serve}:{ports[0]} {program} &
   Serving on
   $ {serve}:{ports[1]} {program} &
   Serving on
   $ curl -s {first}
   ...<ul></ul>...
   $ curl -s -o /dev/null -d title=Market {second}
   $ curl -s {first}
   ...Market...
   $ curl -si {first} | grep -i cache-status
   Cache-Status: noticeboard; hit
""")
    finally:
        newcomer.close()
        drop_schemas(postgres_dsn, village)
