"""The tutorial, followed literally in an empty folder: it prints what the page shows."""

from __future__ import annotations

import re
import shutil
from functools import partial
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.support.browser import chromium, find_program
from tests.support.environments import install, make_environment, make_wheel
from tests.support.newcomer import Newcomer, blocks, commands, environment_with, free_port, matches

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / 'docs' / 'tutorial.rst').read_text(encoding='utf-8')

#: The package, as users install it.
NAME = 'onegov_ormcache'

#: What a newcomer installs before the first and before later steps.
INSTALL = 'python -m pip install '


def installed() -> list[Requirement]:
    """Return what the page tells to install."""
    lines = [c for b in blocks(PAGE) if b.language == 'console' for c, _ in commands(b.text)]
    found = [line.removeprefix(INSTALL) for line in lines if line.startswith(INSTALL)]
    return [Requirement(each.strip('"')) for line in found for each in line.split()]


def look_at(url: str, picture: Path) -> None:
    """Open the inspector, follow the link to the tenant, and keep a picture of its page."""
    program = find_program()
    if program is None:
        return
    with chromium(program) as browser:
        page = browser.new_page()
        answer = page.goto(url)
        assert answer is not None
        assert answer.status == 200
        page.get_by_role('link', name='bern').first.click()
        assert page.get_by_role('link', name='headlines').first.is_visible()
        page.screenshot(path=picture)


@pytest.mark.skipif(not (shutil.which('curl') and shutil.which('bash')), reason='needs curl, bash')
@pytest.mark.timeout(300)
def test_tutorial(tmp_path: Path) -> None:
    """A newcomer who has what the page says to install, and nothing more, sees what it shows."""
    wanted = installed()
    extras = {extra for each in wanted if each.name == NAME for extra in each.extras}
    others = [each.name for each in wanted if each.name != NAME]
    interpreter = make_environment(tmp_path / 'venv', NAME, frozenset(extras), others=others)
    install(interpreter, make_wheel(ROOT, tmp_path))
    folder = tmp_path / 'empty'
    folder.mkdir()
    picture = tmp_path / 'inspector.png'
    newcomer = Newcomer(
        folder, environment_with(interpreter), free_port(), partial(look_at, picture=picture)
    )
    try:
        newcomer.follow(PAGE, skipped=re.escape(INSTALL))
    finally:
        newcomer.close()
    assert (folder / 'tenants' / 'chur.sqlite').exists()
    assert picture.exists() or find_program() is None
    assert sum('cache-status' in command for command in newcomer.ran) >= 3


def test_a_page_that_shows_something_else_is_noticed(tmp_path: Path) -> None:
    """The test can fail: a command that prints another line than the page is an error."""
    page = '.. code-block:: console\n\n   $ echo seen\n   shown\n'
    newcomer = Newcomer(tmp_path, environment_with(Path('/bin/sh')), 1)
    with pytest.raises(AssertionError, match='seen'):
        newcomer.follow(page)
    newcomer.follow(page.replace('shown', 'se...'))


def test_what_matches() -> None:
    """`...` stands for anything, also for several lines; all else must be the same."""
    assert matches('a\nb\nc\n', 'a\n...\nc\n')
    assert matches('Header: x \r\n', 'Header: x')
    assert not matches('a\nb\n', 'a\n')
    assert not matches('axb', 'a.b')


def test_the_tutorial_is_short() -> None:
    """Ten minutes are enough for at most 130 lines of code to paste, and 35 commands."""
    found = list(blocks(PAGE))
    code = [line for b in found if b.file for line in b.text.splitlines() if line.strip()]
    ran = [each for b in found if b.language == 'console' for each in commands(b.text)]
    assert len(code) <= 130
    assert len(ran) <= 35
