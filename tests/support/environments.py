"""Environments with a part of what is installed here, to show what is needed, and what not."""

from __future__ import annotations

import os
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
    code: Path,
    others: Iterable[str] = (),
) -> Path:
    """Make a virtual environment that has what a package's metadata ask for, and no more.

    What is installed already is linked, so that nothing is downloaded.

    :param package: the name of the distribution.
    :param extras: which of its extras the environment has.
    :param code: the package's folder, linked in the place of an installed copy.
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
