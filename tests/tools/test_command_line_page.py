"""The page on the command line names the commands and options that there are."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from onegov_ormcache.tools.cli import commands

PAGE = Path(__file__).parents[2] / 'docs' / 'command_line.rst'

SHOWN = re.findall(r'^   \$ onegov-ormcache (.+)$', PAGE.read_text(encoding='utf-8'), re.MULTILINE)


@pytest.mark.parametrize('line', SHOWN)
def test_commands_that_are_shown(line: str) -> None:
    """Each command of the page has the options that it is shown with."""
    name, *arguments = shlex.split(line)
    commands.commands[name].make_context(name, arguments)


def test_every_command_is_told() -> None:
    """Each command has a part of the page, and each of its own options is named there."""
    text = PAGE.read_text(encoding='utf-8')
    titles = re.findall(r'^(.+)\n-+$', text, re.MULTILINE)
    for name, command in commands.commands.items():
        assert any(name in title.split() for title in titles), name
        if isinstance(command, click.Group) or name == 'demo':
            continue  # told elsewhere
        for parameter in command.params:
            for option in parameter.opts if isinstance(parameter, click.Option) else ():
                assert f'``{option}' in text or f' {option}' in text, (name, option)
