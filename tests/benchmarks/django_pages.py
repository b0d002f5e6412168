"""The site of :mod:`.pages` in Django: served by the Python of the peers' environment.

It imports nothing of this package. The environment variable ``BENCHMARK_PAGES`` has its
configuration as JSON, ``BENCHMARK_MODE`` is ``none``, ``cachalot`` or ``pages`` (the per-view
cache, for 60 seconds).
"""

from __future__ import annotations

import json
import os
import sys
from html import escape
from typing import Any

CONFIG = json.loads(os.environ['BENCHMARK_PAGES'])
MODE = os.environ['BENCHMARK_MODE']
BOXES, LINES, SECONDS, QUIET = 9, 20, 60, 100


def configure() -> None:
    import django  # type: ignore[import-not-found]
    from django.conf import settings  # type: ignore[import-not-found]

    # the models are of an installed application; this module is it
    sys.modules['bench'] = sys.modules[__name__]
    settings.configure(
        INSTALLED_APPS=['bench', *(['cachalot'] if MODE == 'cachalot' else [])],
        DATABASES={
            'default': {
                'ENGINE': 'django.db.backends.postgresql',
                **CONFIG['database'],
                'CONN_MAX_AGE': None,
                'OPTIONS': {'options': f'-c search_path={CONFIG["schema"]}'},
            }
        },
        CACHES={
            'default': {
                'BACKEND': 'django.core.cache.backends.redis.RedisCache',
                'LOCATION': CONFIG['redis_url'],
                'KEY_PREFIX': CONFIG['schema'],
            }
        },
        ALLOWED_HOSTS=['*'],
        DEFAULT_AUTO_FIELD='django.db.models.AutoField',
        ROOT_URLCONF=__name__,
        # it tells the length of the body, for which a connection stays open
        MIDDLEWARE=['django.middleware.common.CommonMiddleware'],
    )
    django.setup()


configure()

from django.core.wsgi import get_wsgi_application  # type: ignore[import-not-found]  # noqa: E402
from django.db import models  # type: ignore[import-not-found]  # noqa: E402
from django.http import HttpResponse  # type: ignore[import-not-found]  # noqa: E402
from django.urls import path, reverse  # type: ignore[import-not-found]  # noqa: E402
from django.views.decorators.cache import cache_page  # type: ignore[import-not-found]  # noqa: E402


class Item(models.Model):  # type: ignore[misc]
    category = models.IntegerField()
    name = models.CharField(max_length=100)
    value = models.IntegerField()

    class Meta:
        app_label = 'bench'
        db_table = 'items'


class Node(models.Model):  # type: ignore[misc]
    parent_id = models.IntegerField(null=True)
    title = models.CharField(max_length=100)

    class Meta:
        app_label = 'bench'
        db_table = 'nodes'


def root(request: Any) -> Any:
    return HttpResponse('served')


def line(request: Any, id: int) -> Any:
    return HttpResponse('')


def page(request: Any, number: int) -> Any:
    if request.method == 'POST':
        Item.objects.filter(category=number).update(value=models.F('value') + 1)
        return HttpResponse('changed')
    boxes = [
        Node.objects.filter(parent_id=box).order_by('id').values_list('id', 'title')[:LINES]
        for box in range(BOXES)
    ]
    if number < QUIET:
        items = Item.objects.filter(category=number).order_by('id')
        entries = list(items.values_list('id', 'name', 'value')[:LINES])
    else:
        nodes = Node.objects.filter(parent_id=number - QUIET).order_by('id')
        entries = [(*each, 0) for each in nodes.values_list('id', 'title')[:LINES]]

    def lines_of(links: Any) -> str:
        return ''.join(
            f'<li class="line"><a href="{escape(url)}">{escape(text)}</a></li>\n'
            for url, text in links
        )

    def link(id: int) -> str:
        return str(request.build_absolute_uri(reverse('line', args=[id])))

    lists = '\n'.join(
        f'<nav><ul>\n{lines_of((link(id), title) for id, title in box)}</ul></nav>'
        for box in boxes
    )
    shown = lines_of((link(id), f'{name}: {value}') for id, name, value in entries)
    return HttpResponse(
        f'<!-- value={entries[0][2]} --><html><body>\n{lists}\n'
        f'<main><ul>\n{shown}</ul></main>\n</body></html>\n'
    )


urlpatterns = [
    path('', root),
    path('pages/<int:number>', cache_page(SECONDS)(page) if MODE == 'pages' else page),
    path('nodes/<int:id>', line, name='line'),
]


def make() -> Any:
    """The application, made in the process that serves it."""
    return get_wsgi_application()
