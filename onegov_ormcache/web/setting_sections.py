"""``App.setting_section``, which says where a section is that is no dictionary of settings.

A section may come from a file, by ``App.init_settings``. This module knows nothing of what the
settings of a section mean.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from dectate import ConflictError
from morepath.directive import SettingAction, SettingSectionAction, SettingValue

from ..core.settings import SECTION
from ..errors import ConfigurationError


class CheckedSettingSection(SettingSectionAction):
    """The action of ``App.setting_section``. Morepath's own would raise an ``AttributeError`` or a
    ``TypeError`` that names no file.

    :param section: the name of the section.
    """

    def actions(self, obj: Callable[[], Any]) -> Generator[tuple[SettingAction, SettingValue]]:
        settings = obj()
        where = self.code_info.filelineno() if self.code_info else '?'
        if not hasattr(settings, 'items'):
            raise ConfigurationError(
                f'{where}: the section {self.section!r} is of the type '
                f'{type(settings).__name__}; expected a dictionary of settings (an empty section '
                'of a YAML file is None: write {} there)'
            )
        for name, value in settings.items():
            if not isinstance(name, str):
                raise ConfigurationError(
                    f'{where}: the section {self.section!r} has a setting {name!r}; expected '
                    "names that are texts (YAML reads 'on', 'off', 'yes' and 'no' as booleans)"
                )
            yield SettingAction(section=self.section, name=name), SettingValue(value)


def given_twice(error: ConflictError, app_class: type) -> ConfigurationError | None:
    """Return the error for a setting of the section ``orm_cache`` that two places give to one
    class; None if the conflict is about something else.

    Dectate's message has the source lines of both, which may have a password.
    """
    for action in error.actions:
        if isinstance(action, SettingAction) and action.section == SECTION:
            places = [each.code_info.filelineno() for each in error.actions if each.code_info]
            return ConfigurationError(
                f'{app_class.__qualname__}: setting {SECTION}.{action.name} is given twice: '
                f'{" and ".join(places)}; leave out one of them. A subclass may give another value'
            )
    return None
