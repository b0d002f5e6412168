"""The inspector: pages that show what is cached, for those whom the application lets in.

Needs the extra ``inspector``. It does not know how it is mounted.
"""

from __future__ import annotations

from ...errors import MissingExtraError

try:
    import jinja2  # noqa: F401 - what follows needs it
    import morepath  # noqa: F401
except ModuleNotFoundError as error:
    raise MissingExtraError(
        f'The inspector needs {error.name}: python -m pip install "onegov_ormcache[inspector]"'
    ) from error

from . import messages, views  # noqa: F401 - they register themselves
from .app import Inspector
from .models import AllTenants, ChangeCache, Tenant, ViewCache

__all__ = ['AllTenants', 'ChangeCache', 'Inspector', 'Tenant', 'ViewCache']
