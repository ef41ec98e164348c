"""Warnings that point to the line of the caller's own that led to them."""

from __future__ import annotations

import sys
import warnings
from typing import Final

_OWN: Final = (__name__.partition(".")[0], "contextlib")


def warn_caller(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn with the line from which this library was entered, however deep the call came from.

    Args:
        message: What to say.
        category: The kind of warning, by which a caller may filter.

    Example:
        >>> with warnings.catch_warnings(record=True, action="always") as caught:
        ...     warn_caller("A judge failed.", RuntimeWarning)
        >>> caught[0].category.__name__
        'RuntimeWarning'
    """
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _OWN:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
