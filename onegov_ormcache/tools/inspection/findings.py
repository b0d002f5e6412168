"""What a check has found: how bad it is, what it is about, and what to do.

This module prints nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Severity(Enum):
    """How bad a finding is."""

    #: Something does not work, or is wrong.
    ERROR = 'error'
    #: It works, and costs something or may be wrong.
    WARNING = 'warning'
    #: Worth to know, and maybe intended.
    NOTE = 'note'


@dataclass(frozen=True)
class Finding:
    """Something that a check has found."""

    severity: Severity
    #: What it is about: a setting, a property, a server.
    subject: str
    #: What is wrong, and what to do.
    text: str


def error(subject: str, text: str) -> Finding:
    """Return a finding of something that is wrong."""
    return Finding(Severity.ERROR, subject, text)


def warning(subject: str, text: str) -> Finding:
    """Return a finding of something that may be wrong."""
    return Finding(Severity.WARNING, subject, text)


def note(subject: str, text: str) -> Finding:
    """Return a finding of something that may be intended."""
    return Finding(Severity.NOTE, subject, text)
