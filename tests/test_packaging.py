"""The wheel has what the package needs at run time, and nothing else."""

from __future__ import annotations

import zipfile
from pathlib import Path

from tests.support.environments import make_wheel

ROOT = Path(__file__).parent.parent


def test_wheel(tmp_path: Path) -> None:
    """The wheel has the modules, the scripts and py.typed, and neither tests nor fixtures."""
    wheel = make_wheel(ROOT, tmp_path)
    names = {name for name in zipfile.ZipFile(wheel).namelist() if '.dist-info/' not in name}
    wanted = {
        path.relative_to(ROOT).as_posix()
        for pattern in ('*.py', '*.lua', '*.sql', '*.css', '*.jinja2', 'py.typed')
        for path in (ROOT / 'onegov_ormcache').rglob(pattern)
    }
    assert {'onegov_ormcache/py.typed', 'onegov_ormcache/tags/lua/doubt.lua'} < wanted
    assert names == wanted
