"""Words as the rule rewards count them: by white space, and by character where a script writes none."""

from __future__ import annotations

import re
import string
from typing import Final

# Scripts without spaces between words: Thai, Lao, Myanmar, Khmer, kana, Han.
_UNSPACED: Final = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD: Final = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
_INVISIBLE: Final = re.compile(
    "[\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]+"
)
_PUNCTUATION: Final = string.punctuation + "«»“”„‘’‚…–—¿¡。、，！？；：「」『』（）"


def words(text: str) -> list[str]:
    """Split a text into words.

    Words are what white space separates, case-folded and without the punctuation around them; what is
    nothing but punctuation counts as it stands. In scripts that write no spaces (Han, kana, Thai, Lao, Khmer,
    Myanmar) each character is a word. Characters that nobody sees (zero-width, soft hyphen, marks of
    direction) are left out, so that they make no word a new one. Linear in the text.

    Args:
        text: Any text.

    Returns:
        Its words, in order.

    Example:
        >>> words("L'aorta porta il sangue; l'AORTA è 大动脉.")
        ["l'aorta", 'porta', 'il', 'sangue', "l'aorta", 'è', '大', '动', '脉', '.']
    """
    return [word.strip(_PUNCTUATION) or word for word in _WORD.findall(without_invisible(text).casefold())]


def without_invisible(text: str) -> str:
    """Leave out zero-width characters, soft hyphens and marks of direction.

    Example:
        >>> without_invisible("blo\u200bod")
        'blood'
    """
    return _INVISIBLE.sub("", text)
