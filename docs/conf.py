"""Sphinx: what the documentation is built with."""

from __future__ import annotations

from configparser import ConfigParser
from pathlib import Path

_metadata = ConfigParser()
_metadata.read(Path(__file__).parent.parent / 'setup.cfg', encoding='utf-8')

project = 'onegov_ormcache'
author = _metadata['metadata']['author']
release = version = _metadata['metadata']['version']

extensions = ['sphinx.ext.autodoc', 'sphinx.ext.autosummary']
autosummary_generate = False
exclude_patterns = ['_build']
html_theme = 'furo'
html_title = f'{project} {release}'
html_static_path: list[str] = []

autodoc_member_order = 'bysource'
autodoc_typehints = 'signature'
# what values may be is a union of many things: its name says more
autodoc_type_aliases = {'CachePolicy': 'CachePolicy'}
