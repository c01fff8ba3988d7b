# SPDX-License-Identifier: GPL-2.0-or-later
"""The base of enumerations that name differences, of which some have no known cause."""

from __future__ import annotations

from enum import Enum
from typing import TypeVar

T = TypeVar("T", bound="Explained")


class Explained(Enum):
    """A name for a difference. `value` is for programs, `text` for people.

    `explained` is false for a difference whose cause is not known.
    """

    text: str
    explained: bool

    def __new__(cls: type[T], slug: str, text: str, explained: bool) -> T:
        member = object.__new__(cls)
        member._value_ = slug
        member.text = text
        member.explained = explained
        return member
