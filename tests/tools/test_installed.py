"""The command line of an installed wheel, with its extras and without them."""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.support.environments import make_environment, make_wheel

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope='module')
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's folder as a wheel has it."""
    folder = tmp_path_factory.mktemp('wheel')
    with zipfile.ZipFile(make_wheel(ROOT, folder)) as archive:
        archive.extractall(folder / 'unpacked')
    (points,) = (folder / 'unpacked').glob('*.dist-info/entry_points.txt')
    assert 'onegov-ormcache = onegov_ormcache.__main__:main' in points.read_text()
    return folder / 'unpacked' / 'onegov_ormcache'


def run(
    unpacked: Path, folder: Path, extra: str, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line in an environment with one extra, and in an empty folder."""
    python = make_environment(
        folder / 'environment', 'onegov_ormcache', frozenset({extra}), unpacked
    )
    empty = folder / 'empty'
    empty.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith('PYTHON')}
    return subprocess.run(
        [str(python), '-m', 'onegov_ormcache', *arguments], cwd=empty, text=True,
        env={**environment, 'COLUMNS': '120', 'PYTHONIOENCODING': 'utf-8'}, encoding='utf-8',
        capture_output=True, check=False,
    )  # fmt: skip


def test_demo_of_a_wheel(unpacked: Path, tmp_path: Path) -> None:
    """The demo needs its extra alone, and no checkout."""
    done = run(unpacked, tmp_path, 'demo', 'demo', '--tenants', '2')
    assert done.returncode == 0, done.stderr
    assert 'What the cache does' in done.stdout
    assert 'What it saves' in done.stdout
    assert list((tmp_path / 'empty').iterdir()) == []


def test_command_line_of_a_wheel(unpacked: Path, tmp_path: Path) -> None:
    """The other commands need the extra `cli` alone, and the demo says what it needs."""
    done = run(unpacked, tmp_path, 'cli', 'tags', '--redis-url', 'redis://127.0.0.1:1/0')
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr.startswith('error: Redis')
    shutil.rmtree(tmp_path / 'empty')
    shutil.rmtree(tmp_path / 'environment')
    done = run(unpacked, tmp_path, 'cli', 'demo')
    assert done.returncode == 2
    assert done.stderr.endswith(': python -m pip install "onegov_ormcache[demo]"\n')


def test_without_the_extra(unpacked: Path, tmp_path: Path) -> None:
    """Without an extra, the command line says in a line what to install."""
    done = run(unpacked, tmp_path, 'zope', 'tags')
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr == (
        'error: the command line needs click: python -m pip install "onegov_ormcache[cli]"\n'
    )
