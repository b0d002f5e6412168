"""The wheel has what the package needs at run time, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_wheel(tmp_path: Path) -> None:
    """The wheel has the modules, the scripts and py.typed, and neither tests nor fixtures."""
    source = tmp_path / 'source'
    source.mkdir()
    for name in ('setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, source)
    for folder in ('onegov_ormcache', 'tests', 'fixtures'):
        ignored = shutil.ignore_patterns('__pycache__')
        shutil.copytree(ROOT / folder, source / folder, ignore=ignored)
    command = [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps']
    subprocess.run(
        [*command, '--no-build-isolation', '--wheel-dir', str(tmp_path), str(source)], check=True
    )
    (wheel,) = tmp_path.glob('*.whl')
    names = {name for name in zipfile.ZipFile(wheel).namelist() if '.dist-info/' not in name}
    wanted = {
        path.relative_to(ROOT).as_posix()
        for pattern in ('*.py', '*.lua', '*.sql', '*.css', '*.jinja2', 'py.typed')
        for path in (ROOT / 'onegov_ormcache').rglob(pattern)
    }
    assert {'onegov_ormcache/py.typed', 'onegov_ormcache/tags/lua/doubt.lua'} < wanted
    assert names == wanted
