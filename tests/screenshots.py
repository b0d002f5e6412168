"""Takes the pictures of the documentation: ``python -m tests.screenshots``.

It starts PostgreSQL and Valkey, and needs Chromium, see :mod:`tests.support.browser`.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from tests.support.browser import MISSING, chromium, find_program, served
from tests.support.servers import RedisServer, postgres_server
from tests.support.town_with_inspector import OPERATOR, PROPERTY, age, make_town, visit

FOLDER = Path(__file__).parent.parent / 'docs' / 'screenshots'

#: The tenants, of which the first has the most visitors: their names end with ISO codes.
TENANTS = ['town_is', 'town_lu', 'town_mt', 'town_li']


class Picture(NamedTuple):
    """One picture of one page."""

    name: str
    path: str
    scheme: str = 'light'
    width: int = 1120
    #: None: as high as the page.
    height: int | None = None


PICTURES = (
    Picture('tenant-light', '/cache/tenants/town_is', height=1200),
    Picture('tenant-dark', '/cache/tenants/town_is', 'dark', height=1200),
    Picture('tenant-narrow', '/cache/tenants/town_is', width=390, height=1400),
    Picture('property-light', f'/cache/tenants/town_is/property?name={PROPERTY}'),
    Picture('property-dark', f'/cache/tenants/town_is/property?name={PROPERTY}', 'dark'),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Take the pictures.

    :return: the exit code: 0, or 2 if there is no browser.
    """
    parser = ArgumentParser(prog='python -m tests.screenshots', description=__doc__)
    parser.add_argument('--folder', type=Path, default=FOLDER, help='where they go')
    folder: Path = parser.parse_args(argv).folder
    program = find_program()
    if program is None:
        print(MISSING, file=sys.stderr)
        return 2
    with ExitStack() as stack:
        settings = {
            'dsn': stack.enter_context(postgres_server()),
            'redis_url': stack.enter_context(RedisServer()).url,
            'namespace': 'town',
        }
        application = make_town(settings, TENANTS)
        stack.callback(application.app.close_orm_cache)
        visit(application, TENANTS, times=120)
        age(application, TENANTS)
        url = stack.enter_context(served(application))
        browser = stack.enter_context(chromium(program))
        folder.mkdir(parents=True, exist_ok=True)
        for picture in PICTURES:
            with browser.new_context(
                viewport={'width': picture.width, 'height': picture.height or 900},
                color_scheme='dark' if picture.scheme == 'dark' else 'light',
                extra_http_headers=OPERATOR,
            ) as context:
                page = context.new_page()
                page.goto(url + picture.path)
                page.screenshot(
                    path=folder / f'{picture.name}.png', full_page=picture.height is None
                )
            print(folder / f'{picture.name}.png')
    return 0


if __name__ == '__main__':
    sys.exit(main())
