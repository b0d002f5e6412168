"""Environments with a part of what is installed here, to show what is needed, and what not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distribution
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def make_environment(
    folder: Path,
    package: str,
    extras: frozenset[str],
    code: Path | None = None,
    others: Iterable[str] = (),
) -> Path:
    """Make a virtual environment that has what a package's metadata ask for, and no more.

    What is installed already is linked, so that nothing is downloaded.

    :param package: the name of the distribution.
    :param extras: which of its extras the environment has.
    :param code: the package's folder, linked in the place of an installed copy; None: the
        environment is without the package.
    :param others: the names of further distributions that it has, with what these need.
    :return: the environment's interpreter.
    """
    venv.create(folder, symlinks=True)
    (site_packages,) = folder.glob('lib/python*/site-packages')
    wanted: list[Iterable[Distribution]] = [needed(package, extras)]
    wanted += [(distribution(name), *needed(name, frozenset())) for name in others]
    for found in chain(*wanted):
        for name in top_level(found):
            source = Path(str(found.locate_file(name)))
            link = site_packages / name
            if source.exists() and not link.exists():
                link.symlink_to(source)
    if code is not None:
        (site_packages / code.name).symlink_to(code)
    return folder / 'bin' / 'python'


def needed(package: str, extras: frozenset[str]) -> Iterator[Distribution]:
    """The distributions that a package with these extras needs, without itself."""
    seen: set[tuple[str, frozenset[str]]] = set()
    left = [(package, extras)]
    while left:
        name, wanted = left.pop()
        if (canonicalize_name(name), wanted) in seen:
            continue
        seen.add((canonicalize_name(name), wanted))
        found = distribution(name)
        if name != package:
            yield found
        for line in found.requires or ():
            requirement = Requirement(line)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({'extra': e}) for e in {'', *wanted}):
                left.append((requirement.name, frozenset(requirement.extras)))


def top_level(found: Distribution) -> set[str]:
    """The files and folders of a distribution in site-packages."""
    names = {file.parts[0] for file in found.files or ()}
    return names - {os.pardir, '__pycache__'}


def make_wheel(root: Path, folder: Path) -> Path:
    """Build the wheel of the package of a checkout, from a copy of what it is made of.

    :param root: the checkout.
    :param folder: for the copy and the wheel.
    :return: the wheel.
    """
    source = folder / 'source'
    source.mkdir()
    for name in ('setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE'):
        shutil.copy(root / name, source)
    ignored = shutil.ignore_patterns('__pycache__')
    for name in ('onegov_ormcache', 'tests', 'fixtures'):
        shutil.copytree(root / name, source / name, ignore=ignored)
    command = [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps']
    subprocess.run(
        [*command, '--no-build-isolation', '--wheel-dir', str(folder), str(source)],
        check=True,
        timeout=120,
    )
    (wheel,) = folder.glob('*.whl')
    return wheel


def install(interpreter: Path, *arguments: str | Path) -> None:
    """Install something into an environment, without what it depends on; nothing is downloaded.

    :param interpreter: that of the environment.
    :param arguments: those of ``pip install``.
    """
    options = ['--quiet', '--no-deps', '--no-build-isolation', '--disable-pip-version-check']
    subprocess.run(
        [sys.executable, '-m', 'pip', '--python', interpreter, 'install', *options, *arguments],
        check=True,
        timeout=120,
    )
