"""nginx before a server, with a cache that keeps each page for a second.

nginx is optional: the one in the path is taken, or the one that :data:`VARIABLE` names.
"""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.servers import free_port

from .serving import running

VARIABLE = 'BENCHMARK_NGINX'
#: Everything that nginx writes is in the folder of this file. It forgets unused connections to
#: the server before the server does, because it does not repeat a post whose connection ended.
CONFIGURATION = """
{user}
daemon off;
worker_processes 1;
pid nginx.pid;
error_log stderr;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path client_body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    proxy_cache_path {folder}/cache keys_zone=pages:1m use_temp_path=off;
    upstream site {{
        server 127.0.0.1:{site};
        keepalive 8;
        keepalive_timeout 1s;
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://site;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
            proxy_cache pages;
            proxy_cache_valid 200 1s;
            proxy_cache_lock on;
            proxy_ignore_headers Cache-Control Expires;
        }}
    }}
}}
"""


def nginx() -> str:
    """Return the path of nginx.

    :raises RuntimeError: if there is none.
    """
    path = shutil.which(os.environ.get(VARIABLE, 'nginx'))
    if path is None:
        raise RuntimeError(f'nginx is not installed, and {VARIABLE} does not name it')
    return path


@contextmanager
def microcached(site: int) -> Iterator[int]:
    """Run nginx before a server; gives its port on loopback.

    :param site: the port of the server.
    :raises RuntimeError: if there is no nginx, or it does not start.
    """
    program = nginx()
    port = free_port()
    with tempfile.TemporaryDirectory(prefix='ormcache-nginx-') as name:
        folder = Path(name)
        configuration = folder / 'nginx.conf'
        configuration.write_text(
            CONFIGURATION.format(folder=folder, port=port, site=site, user=user_line())
        )
        with running([program, '-p', name, '-c', str(configuration)], port, folder=folder):
            yield port


def user_line() -> str:
    """Return the line that lets the worker run as this process's user, if that is root: as
    ``nobody`` it could not open its folder. For others it is empty; nginx would ignore it."""
    if os.geteuid() != 0:
        return ''
    return f'user {pwd.getpwuid(0).pw_name} {grp.getgrgid(os.getegid()).gr_name};'
