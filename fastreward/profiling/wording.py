"""Numbers as a reader wants them: a time in the unit that suits it, a part in percent."""

from __future__ import annotations


def time_text(seconds: float | None) -> str:
    """A time in the unit that suits it; a dash where it is not known.

    Example:
        >>> time_text(0.0124), time_text(3.5), time_text(7200), time_text(None)
        ('12.4 ms', '3.50 s', '2.0 h', '–')
    """
    if seconds is None:
        return "–"
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    if seconds >= 100:
        return f"{seconds:.0f} s"
    if seconds >= 1:
        return f"{seconds:.2f} s"
    if seconds >= 1e-3 or seconds <= 0:
        return f"{seconds * 1e3:.1f} ms"
    return f"{seconds * 1e6:.1f} µs"


def percent(part: float, whole: float) -> str:
    """A part of a whole; one digit behind the point where it is small, and 0 of nothing.

    Example:
        >>> percent(1, 3), percent(0.004, 1), percent(1e-6, 1), percent(1, 0)
        ('33 %', '0.4 %', '<0.1 %', '0 %')
    """
    value = 100 * part / whole if whole else 0.0
    if value == 0:
        return "0 %"
    if 0 < value < 0.05:
        return "<0.1 %"
    return f"{value:.0f} %" if value >= 9.95 else f"{value:.1f} %"


def counted(count: int, noun: str) -> str:
    """A number with its noun, in the plural unless it is one.

    Example:
        >>> counted(1, "call"), counted(12345, "text"), counted(2, "process")
        ('1 call', '12,345 texts', '2 processes')
    """
    plural = "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{'' if count == 1 else plural}"


def listed(parts: list[str]) -> str:
    """Parts as a sentence lists them.

    Example:
        >>> listed(["a", "b", "c"])
        'a, b and c'
    """
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
