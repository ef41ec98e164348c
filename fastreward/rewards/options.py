"""The options of a multiple-choice question: which of them a piece of text names, by letter or by wording."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Final

import numpy as np

from fastreward.errors import InputError
from fastreward.rewards.completion import describe
from fastreward.rewards.hedges import alternatives
from fastreward.rewards.quantities import AMBIGUOUS, Ambiguous, Quantity, read_quantity, with_carets
from fastreward.rewards.statements import LONGEST_ANSWER
from fastreward.rewards.words import without_invisible

_LATEX: Final = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mbox|boxed)\s?\{([^{}]*)\}")
_LATEX_SIGN: Final = re.compile(r"\\[()\[\]]|\$")
_FILLER: Final = re.compile(
    r"[\s*_:=,\"“]{0,9}(?:"
    r"(?P<names>(?:option|choice|letter|answer|opzione|alternativa|risposta|lettera|scelta)\b|la(?=\s)|l['’])"
    r"|(?:therefore|thus|hence|so|clearly|definitely|exactly|only|simply|approximately|about|roughly|around"
    r"|equal\sto|number|the|either|both|quindi|dunque|perciò|pertanto|allora|esattamente|solo|circa"
    r"|approssimativamente|pari\sa|uguale\sa|numero|il|lo|entrambe|sia|quella|sicuramente)(?=[\s:,*]))"
    r"[\s*_:,]{0,9}",
    re.IGNORECASE,
)
_LETTER: Final = re.compile(
    r"[\s*_\"“”«`']{0,6}[(\[{<]?[\s*_]{0,3}(?P<letter>[A-Za-z])[*_\"”»`]{0,3}(?P<close>[)\]}>]?)[*_\"”»`]{0,3}"
)
_OTHER: Final = re.compile(r"[\s*_(]{0,4}(?:[,/&+;]|\b(?:and|or|e|ed|o|oppure|sia)\b)\s{0,3}", re.IGNORECASE)
_RULED_OUT: Final = re.compile(
    r"[)\]*_]{0,3}\s+(?:is|was|è|era)\s+(?:not|wrong|incorrect|false|sbagliat[ao]|errat[ao]|fals[ao]|scorrett[ao])\b",
    re.IGNORECASE,
)
_BECAUSE: Final = r"because|since|perché|poiché|siccome|giacché"
_AFTER_COMMA: Final = re.compile(rf"[,;]?\s+(?:{_BECAUSE})\b", re.IGNORECASE)
# What goes on after a letter in a sentence that names it. "A", "E", "I" and "O" are words as well.
_AFTER_WORD: Final = re.compile(rf"\s+(?:{_BECAUSE}|is|was|è)\b", re.IGNORECASE)
_AFTER_LETTER: Final = re.compile(
    rf"\s+(?:{_BECAUSE}|is|was|è|as|for|due|which|that|in|on|by|with|given|but|from|not|rather|instead|and|or"
    r"|then|e|ed|o|che|per|infatti|essendo|dato|visto|con|come|ma|cioè|ovvero|quindi)\b",
    re.IGNORECASE,
)
_CLAUSE_END: Final = re.compile(
    rf"[.;:!?,](?=\s|$)|\s[(–—-]|\n|\s(?:{_BECAUSE}|in quanto|dato che)\b", re.IGNORECASE
)
_ARTICLE: Final = re.compile(r"(?:the|an?|il|lo|la|i|gli|le|un[oa]?)\s|(?:l|un)['’]\s?", re.IGNORECASE)
_EDGES: Final = "".join(sign for sign in string.punctuation if sign not in "%+-") + "«»“”‘’…–— "
_WORTH: Final = (str, int, float)  # what an option may be
_MARKED: Final = r"\s{0,3}\(?%s[).:]\s{0,3}"


def plain(text: str) -> str:
    r"""One notation for what is written in several: `unwrapped`, raised digits after a caret, NFKC.

    Example:
        >>> plain(r"\text{Ｂ}")
        'B'
    """
    return unicodedata.normalize("NFKC", with_carets(unwrapped(text)))


def unwrapped(text: str) -> str:
    r"""As much of a text as an answer may take, without invisible characters and LaTeX around words.

    Example:
        >>> unwrapped(r"$\mathrm{B}$")
        'B'
    """
    text = without_invisible(text[:LONGEST_ANSWER])
    return _LATEX_SIGN.sub("", _LATEX.sub(r"\1", _LATEX.sub(r"\1", text)))


def wording(text: str) -> str:
    """A text without what does not matter to what it says: case, spaces, punctuation around it, article.

    Example:
        >>> wording("  The  Mitochondrion. ")
        'mitochondrion'
    """
    words = " ".join(plain(text).casefold().split()).strip(_EDGES)
    return words[_ARTICLE.match(words).end() :].strip(_EDGES) if _ARTICLE.match(words) else words  # type: ignore[union-attr]


def clauses(text: str) -> list[str]:
    """A text, and what of it stands before each place where its first clause may end, longest first.

    Example:
        >>> clauses("Paris, because it is.")
        ['Paris, because it is.', 'Paris, because it is', 'Paris,', 'Paris']
    """
    return [text, *(text[: match.start()] for match in reversed(list(_CLAUSE_END.finditer(text))))]


def without_fillers(text: str) -> tuple[str, bool]:
    """Leave out what may stand before an answer ("therefore", "la lettera").

    Returns:
        The rest, and whether the last that was left out announces a letter.

    Example:
        >>> without_fillers("quindi la lettera B")
        ('B', True)
    """
    names = False
    for _ in range(5):
        match = _FILLER.match(text)
        if match is None or match.end() == len(text):
            break
        text, names = text[match.end() :], match["names"] is not None
    return text, names


class Options:
    """The options of one question.

    Args:
        letters: Their letters, in upper case.
        texts: What they say, by letter; ``None`` if that is not known.
    """

    def __init__(self, letters: str, texts: Mapping[str, str] | None = None) -> None:
        self.letters = letters
        self.texts = dict(texts or {})
        said = [wording(text) for text in self.texts.values()]
        # What two options say names neither.
        self._letter_of = {
            words: letter for letter, words in zip(self.texts, said, strict=True) if said.count(words) == 1
        }
        self._quantities = {letter: read_quantity(text) for letter, text in self.texts.items()}

    @classmethod
    def read(cls, entry: object, where: str) -> Options:
        """Read an entry of a column of options.

        Args:
            entry: The options in order, or by letter. A marking of their own ("A) …") is left out.
            where: What to call the entry in a message.

        Raises:
            InputError: It is neither, or holds something other than text and numbers, or too many.

        Example:
            >>> Options.read(["A) heart", "B) lung"], "options[0]").texts
            {'A': 'heart', 'B': 'lung'}
        """
        pairs: list[tuple[object, object]] = []
        if isinstance(entry, np.ndarray):
            entry = entry.tolist()
        if isinstance(entry, Mapping):
            pairs = list(entry.items())
        elif isinstance(entry, Sequence) and not isinstance(entry, str | bytes):
            pairs = list(zip_longest(string.ascii_uppercase[: len(entry)], entry))
        if not pairs or not all(_is_letter(letter) and isinstance(text, _WORTH) for letter, text in pairs):
            raise InputError(
                "a list of options, or a mapping from letter to option",
                f"{describe(entry)} in {where}",
                "Pass for each sample the texts of its options in order, 26 at most.",
            )
        texts = {str(letter).upper(): str(text) for letter, text in pairs}
        if all(re.match(_MARKED % letter, text) for letter, text in texts.items()):
            texts = {letter: re.sub("^" + _MARKED % letter, "", text) for letter, text in texts.items()}
        return cls("".join(texts), texts)

    def letter(self, text: str, *, bare: bool = False) -> str | Ambiguous | None:
        """Which option a text names, at whose beginning it is named.

        Args:
            text: "B", "(b)", "option B", "B. the lung", "B because …", or the wording of an option.
            bare: Whether nothing announced the answer: then a letter that could begin a sentence is none.

        Returns:
            The letter; `AMBIGUOUS` for two options, or a letter with the wording of another; or ``None``.

        Example:
            >>> options = Options("ABCDE")
            >>> [options.letter(text) for text in ("opzione b", "B because it pumps", "a heart")]
            ['B', 'B', None]
        """
        text = plain(text)
        rest, named = without_fillers(text)
        match = _LETTER.match(rest)
        letter = match["letter"].upper() if match else ""
        if match is None or letter not in self.letters or not self._alone(match, rest, named, bare):
            return self._worded(text, bare) or self._worded(rest, bare)
        after = rest[match.end() :]
        if after.strip(_EDGES):
            whole = self._letter_of.get(wording(rest))
            if whole and whole != letter:
                return whole  # "E. coli" is option B
            worded = self.named_by_wording(after.lstrip(" .:-–—"), bare=False)
            if (worded and worded != letter) or self._second(
                after, letter, capital=match["letter"].isupper()
            ):
                return AMBIGUOUS
        return letter

    def _worded(self, text: str, bare: bool) -> str | Ambiguous | None:
        """The letter of the option whose wording a text begins with, unless another is named beside it."""
        letter = self.named_by_wording(text, bare=bare)
        if letter is None or bare:
            return letter
        read = clauses(text)
        own = [clause for clause in read if self._letter_of.get(wording(clause)) == letter][:1]
        ends = map(len, own or read)  # it may have been named by its number in another notation
        return AMBIGUOUS if any(self._second(text[end:], letter, capital=True) for end in ends) else letter

    def named_by_wording(self, text: str, *, bare: bool = False) -> str | None:
        """The letter of the option whose words, or whose number with its unit, the text begins with."""
        if not self._letter_of:
            return None
        for clause in [text] if bare else clauses(text):
            if found := self._letter_of.get(wording(clause)):
                return found
        number = read_quantity(text)
        if not isinstance(number, Quantity) or not number.has_unit:
            return None
        same = [
            letter
            for letter, other in self._quantities.items()
            if isinstance(other, Quantity) and number.equals(other, 1e-9) and other.equals(number, 1e-9)
        ]
        return same[0] if len(same) == 1 else None

    def _alone(self, match: re.Match[str], text: str, named: bool, bare: bool) -> bool:
        """Whether the letter is one, and not the beginning of a word or of a sentence."""
        after, capital = text[match.end() :], match["letter"].isupper()
        if after.lstrip().startswith("?"):
            return False
        if match["close"] or not after.strip(_EDGES):
            return True
        sign, following = after[0], after[1:].lstrip()
        starts_anew = following[:1].isupper() or following[:1].isdigit()
        if sign == ":":
            return True
        if sign == ".":
            return starts_anew or (after[1:2].isspace() and not bare) or self._own(match, following)
        if sign in ",;":
            return not bare or _AFTER_COMMA.match(after) is not None
        if sign in "/&+":
            return not bare
        if not sign.isspace() or not capital:
            return False
        return self._sentence_goes_on(match, after, named, bare)

    def _sentence_goes_on(self, match: re.Match[str], after: str, named: bool, bare: bool) -> bool:
        """Whether a sentence can have named the capital and go on with these words."""
        letter = match["letter"]
        if (named and not bare) or after.lstrip()[:1] in "(–—-=:/&+" or self._own(match, after):
            return True
        if bare:
            return _AFTER_COMMA.match(after) is not None
        if "\n" in after[: len(after) - len(after.lstrip())] or self._second(after, letter, capital=True):
            return True
        return (_AFTER_WORD if letter in "AEIO" else _AFTER_LETTER).match(after) is not None

    def _own(self, match: re.Match[str], after: str) -> bool:
        """Whether the wording of the letter's own option follows it."""
        return self.named_by_wording(after.strip()) == match["letter"].upper()

    def _second(self, after: str, first: str, *, capital: bool) -> bool:
        """Whether another option is named beside the first: "A or B", "A e B", "A/B", "A, maybe the lung"."""
        for place, is_open in alternatives(after):
            rest, _ = without_fillers(after[place:])
            if self._is_other(rest, first, is_open, capital):
                return True
            if is_open and (self.named_by_wording(rest) or first) != first:
                return True
        return False

    def _is_other(self, text: str, first: str, is_open: bool, capital: bool) -> bool:
        """Whether a text begins with the letter of another option, and is not the beginning of a sentence."""
        match = _LETTER.match(text)
        if match is None or match["letter"].upper() not in self.letters.replace(first, ""):
            return False
        after = text[match.end() :]
        if _RULED_OUT.match(after) and not is_open:
            return False
        ends = match["close"] or not (after[:1].strip(_EDGES) or re.match(r"['’]|-\w|\s+[a-zà-ù]", after))
        if ends:
            return is_open or match["letter"].isupper() == capital
        if match["letter"].isupper() != capital or after[:1].isalnum():
            return False
        if _AFTER_WORD.match(after) or _OTHER.match(after):
            return True
        # "C or D depending on …"; but "I", and an article in lower case, begin something else
        return is_open and capital and match["letter"] != "I" and after[:1].isspace()


def _is_letter(value: object) -> bool:
    return isinstance(value, str) and len(value) == 1 and value.upper() in string.ascii_uppercase
