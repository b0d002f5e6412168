"""Follows a page of the documentation literally, as a newcomer would, in an empty folder.

A code block with a caption is added to the file of that name. The lines of a console block that
begin with ``$`` are run, and must print what the page shows below them. One that ends with ``&``
is a server, which must say on stderr what the page shows; ``kill %1`` ends it. Where the text says
to open an address in a browser, a browser opens it, if the test has one.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

#: A directive ``code-block``, with its options and its indented content.
BLOCK = re.compile(
    r'^\.\. code-block:: (?P<language>\S+)\n(?P<options>(?:   :.*\n)*)\n(?P<text>(?:   .*\n|\n)+)',
    re.MULTILINE,
)

#: The sentence that sends a newcomer to a browser.
OPEN = re.compile(r'^Open ``(?P<url>http://\S+)`` in a browser', re.MULTILINE)

#: Seconds that a command may take, and a server until it says that it listens.
PATIENCE = 60


class Block(NamedTuple):
    """A code block of a page, or an address to open."""

    #: ``'browser'`` for an address.
    language: str
    #: The file that the block belongs to; None if it has no caption.
    file: str | None
    text: str


def blocks(page: str) -> Iterator[Block]:
    """Yield the code blocks and addresses of a page, in their order."""
    for found in sorted((*BLOCK.finditer(page), *OPEN.finditer(page)), key=re.Match.start):
        if found.re is OPEN:
            yield Block('browser', None, found['url'])
            continue
        caption = re.search(r'^   :caption: (\S+)$', found['options'], re.MULTILINE)
        lines = [line.removeprefix('   ') for line in found['text'].splitlines()]
        text = '\n'.join(lines).strip('\n') + '\n'
        yield Block(found['language'], caption and caption[1], text)


def commands(text: str) -> Iterator[tuple[str, str]]:
    """Yield the commands of a console block, each with what it prints."""
    for part in re.split(r'^\$ ', text, flags=re.MULTILINE)[1:]:
        command, _, printed = part.partition('\n')
        yield command, printed


class Newcomer:
    """Works in one folder; ends the servers that it has started.

    :param folder: an empty folder.
    :param environment: the environment variables of all commands.
    :param port: takes the place of 8080, which others may use.
    :param look_at: opens an address in a browser, and says what is wrong with what it shows.
    """

    def __init__(
        self,
        folder: Path,
        environment: dict[str, str],
        port: int,
        look_at: Callable[[str], None] | None = None,
    ) -> None:
        self.folder = folder
        self.environment = environment
        self.port = port
        self.look_at = look_at
        self.ran: list[str] = []
        self._servers: list[subprocess.Popen[str]] = []

    def follow(self, page: str, skipped: str = '$^') -> None:
        """Write the files and run the commands of a page.

        :param skipped: a regular expression for commands that are not run.
        :raises AssertionError: if a command prints anything else than the page shows.
        """
        for block in blocks(page):
            text = block.text.replace('8080', str(self.port))
            if block.file is not None:
                path = self.folder / block.file
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open('a', encoding='utf-8') as file:
                    file.write(('\n\n' if file.tell() else '') + text)
            elif block.language == 'browser':
                if self.look_at is not None:
                    self.look_at(text)
            elif block.language == 'console':
                for command, printed in commands(text):
                    if not re.match(skipped, command):
                        self._run(command, printed)

    def _run(self, command: str, printed: str) -> None:
        self.ran.append(command)
        if command.endswith('&'):
            self._serve(command.removesuffix('&'), printed.strip())
        elif command == 'kill %1':
            self._servers[0].send_signal(signal.SIGTERM)
            self._servers.pop(0).communicate(timeout=PATIENCE)
        else:
            done = subprocess.run(
                ['bash', '-c', command],
                cwd=self.folder,
                env=self.environment,
                capture_output=True,
                text=True,
                timeout=PATIENCE,
            )
            assert matches(done.stdout, printed), f'$ {command}\n{done.stdout}{done.stderr}'

    def _serve(self, command: str, expected: str) -> None:
        server = subprocess.Popen(
            ['bash', '-c', f'exec {command}'],
            cwd=self.folder,
            env=self.environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._servers.append(server)
        assert server.stderr is not None
        # ends a wait for a server that says nothing
        timer = threading.Timer(PATIENCE, server.kill)
        timer.start()
        said = ''
        for line in server.stderr:
            said += line
            if expected in line:
                break
        timer.cancel()
        assert expected in said, f'$ {command}\n{said}'
        # what it says later must not fill the pipe
        threading.Thread(target=server.stderr.read, daemon=True).start()

    def close(self) -> None:
        """End the servers that the page has left running."""
        while self._servers:
            server = self._servers.pop()
            with suppress(ProcessLookupError):
                server.send_signal(signal.SIGTERM)
            server.wait(timeout=PATIENCE)


def free_port() -> int:
    """Return a port that nobody listens at."""
    with closing(socket.create_server(('127.0.0.1', 0))) as server:
        return int(server.getsockname()[1])


def matches(printed: str, expected: str) -> bool:
    """Return whether a command printed what a page shows, where ``...`` stands for anything.

    Spaces at the ends of lines do not count, nor does the last line break.
    """
    lines = [line.rstrip() for line in printed.replace('\r\n', '\n').strip('\n').splitlines()]
    pattern = re.escape(expected.strip('\n')).replace(re.escape('...'), '.*')
    return re.fullmatch(pattern, '\n'.join(lines), re.DOTALL) is not None


def environment_with(interpreter: Path) -> dict[str, str]:
    """Return the environment variables of a shell in which a virtual environment is active."""
    kept = {name: os.environ[name] for name in ('HOME', 'LANG', 'TMPDIR') if name in os.environ}
    path = f'{interpreter.parent}{os.pathsep}{os.environ["PATH"]}'
    terminal = {'NO_COLOR': '1', 'COLUMNS': '80', 'PYTHONIOENCODING': 'utf-8'}
    return {**kept, **terminal, 'PATH': path, 'PYTHONDONTWRITEBYTECODE': '1'}
