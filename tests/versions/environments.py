"""Makes a virtual environment for a Python and a SQLAlchemy, and runs tests in it."""

from __future__ import annotations

import os
import signal
import subprocess
import xml.etree.ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Outcome(NamedTuple):
    """What became of the tests of one combination."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    #: The names of the tests that failed, or why there are none.
    failures: tuple[str, ...] = ()

    @property
    def is_good(self) -> bool:
        """True if tests have passed, and none has failed."""
        return self.passed > 0 and not self.failed and not self.failures


class InstallationError(Exception):
    """What a combination needs can't be installed; says what the installation said."""


def make(interpreter: Path, sqlalchemy: str, folder: Path) -> Path:
    """Return the interpreter of a virtual environment with the package and what its tests need.

    :param folder: where the environment is, or is to be.
    :raises InstallationError: if something can't be installed.
    """
    python = folder / 'bin' / 'python'
    done = folder / 'made'
    if done.exists():
        return python
    requirement = f'SQLAlchemy=={sqlalchemy}.*'
    install = ['pip', 'install', '--quiet', '--disable-pip-version-check', '--prefer-binary']
    commands: list[list[str | Path]] = [
        [interpreter, '-m', 'venv', '--clear', folder],
        [python, '-m', *install, '-e', f'{ROOT}[test]', requirement],
    ]
    for command in commands:
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
        if finished.returncode:
            lines = finished.stderr.strip().splitlines()
            raise InstallationError(lines[-1] if lines else f'{command[0]} failed')
    done.touch()
    return python


def version_of(python: Path, distribution: str) -> str:
    """Return the version of what is installed in an environment."""
    code = f'from importlib.metadata import version; print(version({distribution!r}))'
    return subprocess.check_output([python, '-c', code], text=True).strip()


def run(
    python: Path,
    tests: Sequence[str],
    environment: Mapping[str, str],
    report: Path,
    seconds: float,
) -> Outcome:
    """Run tests, for a limited time.

    :param report: a file for their results.
    :param seconds: after this time they are ended, which is a failure.
    """
    report.unlink(missing_ok=True)
    options = ['-q', '-p', 'no:cacheprovider', '--no-header', '--junit-xml', str(report)]
    process = subprocess.Popen(
        [python, '-m', 'pytest', *options, *tests],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return Outcome(failures=(f'not done after {seconds:.0f} s',))
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # with the servers of single tests
            process.communicate()
    if not report.exists():
        return Outcome(failures=tuple(output.strip().splitlines()[-3:]))
    return read(report)


def read(report: Path) -> Outcome:
    """Return the outcome that pytest has written down."""
    (suite,) = xml.etree.ElementTree.parse(report).getroot().iter('testsuite')
    failures = tuple(
        f'{case.get("classname")}::{case.get("name")}'
        for case in suite.iter('testcase')
        if case.find('failure') is not None or case.find('error') is not None
    )
    counts = {name: int(suite.get(name, 0)) for name in ('tests', 'failures', 'errors', 'skipped')}
    failed = counts['failures'] + counts['errors']
    return Outcome(
        passed=counts['tests'] - failed - counts['skipped'],
        failed=failed,
        skipped=counts['skipped'],
        seconds=float(suite.get('time', 0)),
        failures=failures,
    )
