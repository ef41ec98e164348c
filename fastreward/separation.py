"""Where a tokenizer's texts may be cut without a change of their ids: what the word cache stands on.

Many tokenizers treat what stands between two whitespaces by itself: the ids of a text are those of its words,
one after another. A tokenizer's parts tell whether that is so, and a few tries tell at which characters.
"""

from __future__ import annotations

import functools
import json
import re
import string
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import tokenizers
from tokenizers import models

from fastreward.errors import InputError

WHITESPACE: Final = "".join(filter(str.isspace, map(chr, range(0x3001))))
"""Where `str.split` cuts: Unicode's whitespace, and the four separators from U+001C on."""

# What these make of a character depends on no whitespace and on nothing beyond one: they look at single
# characters, or, the normal forms, at a character and its combining marks, and no mark joins a whitespace.
_LOCAL_NORMALIZERS: Final = frozenset(
    ("BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Strip", "StripAccents")
)
# To these, ASCII punctuation and Chinese characters are such a border too. (NFC composes "<" and U+0338.)
_PLAIN_NORMALIZERS: Final = frozenset(("BertNormalizer", "Lowercase", "NFD", "StripAccents"))
_DROP_WHITESPACE: Final = frozenset(("BertPreTokenizer", "Whitespace", "WhitespaceSplit"))
_CUT_FURTHER: Final = _DROP_WHITESPACE | {"Digits", "Punctuation"}
_SPACE_MARK: Final = "\u2581"  # what SentencePiece writes for a space
# Of the blocks that BertNormalizer sets apart, those in daily use.
_CHINESE: Final = "\u3400-\u4dbf\u4e00-\u9fff"
# Both sides of a cut. The sigmas: a lower-casing that minds the end of a word would look across punctuation.
_PROBES: Final = (("ab", "cd"), ("", "cd"), ("ab", ""), ("ΑΣ", "ΑΣ"), ("e\u0301", "i"))
_RARE_PUNCTUATION: Final = "~^`|"
_DELIMITERS_TRIED: Final = 4096

_Steps = list[dict[str, Any]]


@dataclass(frozen=True)
class Separation:
    """Where the texts of a tokenizer may be cut without a change of their ids.

    Attributes:
        whole: A text that holds one of these strings may not be cut. Any other one may be, where `str.split`
            cuts it, unless it holds a word that `may_join` names.
        may_join: Whether a word could change with the whitespace beside it; None if no word does.
        pieces: Cuts words further; None if they have to stay one piece. It takes words with line feeds
            between them, and gives the pieces of all in one list, the line feeds among them.
        delimiter: What may be set between words, or between pieces: a string that adds one token, and its
            id; None if none was found. Words may hold that token as well, which a count of it tells.
    """

    whole: tuple[str, ...]
    may_join: Callable[[str], bool] | None
    pieces: Callable[[str], list[str]] | None
    delimiter: tuple[str, int] | None


def find_separation(tokenizer: tokenizers.Tokenizer) -> Separation:
    r"""Find out where texts may be cut.

    The kinds of normalizer, pre-tokenizer, model and added tokens decide whether cuts can be exact. Which
    characters are then safe to cut at depends on their settings, and is tried out: BERT's clean-up deletes
    U+0085, where `str.split` cuts, and so joins what stood beside it.

    Raises:
        InputError: If a word's ids may depend on its neighbours, or the kind of a part is not known.
            Byte-level BPE, for one, keeps the whitespace.

    Example:
        >>> bert = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
        >>> bert.normalizer = tokenizers.normalizers.BertNormalizer()
        >>> bert.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        >>> found = find_separation(bert)
        >>> found.whole
        ('\x0b', '\x0c', '\x1c', '\x1d', '\x1e', '\x1f', '\x85')
        >>> found.pieces("(e.g.\nx,")
        ['(', 'e', '.', 'g', '.', '\n', 'x', ',']
    """
    _check_model(tokenizer)
    normalizers, pre_tokenizers = _steps(tokenizer.normalizer), _steps(tokenizer.pre_tokenizer)
    marks_spaces = _check_pre_tokenizers(pre_tokenizers)
    _check_normalizers(normalizers, marks_spaces)
    added = _AddedTokens.of(tokenizer)
    whole = [cut for cut in (*WHITESPACE, "\r\n") if not _is_border(tokenizer, cut)]
    if " " in whole:
        raise _refusal("one that does not cut at a space")
    may_join: Callable[[str], bool] | None = None
    if marks_spaces:
        may_join = functools.partial(_may_join_marked_spaces, tokenizer, added)
    elif any(step["type"] == "Precompiled" for step in normalizers):
        may_join = _may_share_a_grapheme
    alone, chinese = _set_apart(tokenizer, normalizers, pre_tokenizers, added)
    characters = re.escape(alone) + chinese
    return Separation(
        whole=(*whole, *filter(_has_whitespace, added.raw)),
        may_join=may_join,
        pieces=re.compile(f"[\\n{characters}]|[^\\n{characters}]+").findall if alone else None,
        delimiter=_delimiter(tokenizer, alone, may_join),
    )


@dataclass(frozen=True)
class _AddedTokens:
    """Strings that are tokens wherever they stand: in the text as it is, and in the normalised text."""

    raw: tuple[str, ...]
    normalized: tuple[str, ...]
    word_characters_matter: bool  # some match only where no letter, digit or "_" stands beside them

    @classmethod
    def of(cls, tokenizer: tokenizers.Tokenizer) -> _AddedTokens:
        tokens = list(tokenizer.get_added_tokens_decoder().values())
        normalized = [_normalize(tokenizer, token.content) for token in tokens if token.normalized]
        for pattern in normalized:
            if not pattern or _has_whitespace(pattern) or _SPACE_MARK in pattern:
                raise _refusal(f"an added token that is {pattern!r} when normalised")
        raw = [token.content for token in tokens if not token.normalized]
        return cls(tuple(raw), tuple(normalized), any(token.single_word for token in tokens))


# --------------------------------------------------------------------------- kinds of parts


def _refusal(received: str) -> InputError:
    remedy = "Tokenise without a word cache."
    return InputError("a tokenizer whose texts can be cut at whitespace", received, remedy)


def _check_model(tokenizer: tokenizers.Tokenizer) -> None:
    """Any model sees one pre-token at a time; those that draw at random, and the untried, are refused."""
    model = tokenizer.model
    if not isinstance(model, models.WordPiece | models.Unigram):
        raise _refusal(f"a {type(model).__name__} model")
    # Older versions of tokenizers know neither.
    draws = [setting for setting in ("alpha", "nbest_size") if getattr(model, setting, None) is not None]
    if draws:
        raise _refusal(f"a model that draws at random ({', '.join(draws)})")
    if tokenizer.padding is not None or tokenizer.truncation is not None:
        raise _refusal("one that pads or truncates")


def _steps(part: Any) -> _Steps:
    """Describe a normalizer or pre-tokenizer as the list of its steps."""

    def flat(described: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if described["type"] != "Sequence":
            yield described
        for step in described.get("normalizers", described.get("pretokenizers", ())):
            yield from flat(step)

    if part is None:
        return []
    try:
        described = json.loads(part.__getstate__())
    except Exception as error:  # tokenizers raises plain Exception for a part that is written in Python
        raise _refusal(f"a part of an unknown kind: {error}") from error
    return list(flat(described))


def _check_pre_tokenizers(steps: _Steps) -> bool:
    """Return whether spaces are marked and kept, as in SentencePiece, and not dropped."""
    kinds = [step["type"] for step in steps]
    if kinds == ["Metaspace"] and steps[0]["prepend_scheme"] == "always" and steps[0]["split"]:
        return True
    by_piece = [kind in _CUT_FURTHER for kind in kinds]
    for index, step in enumerate(steps):
        if step["type"] == "Metaspace" and step["prepend_scheme"] != "first":
            by_piece[index] = True
    if not steps or kinds[0] not in _DROP_WHITESPACE or not all(by_piece):
        raise _refusal(f"the pre-tokenizer {' → '.join(kinds) or 'None'}")
    return False


def _check_normalizers(steps: _Steps, marks_spaces: bool) -> None:
    if marks_spaces:
        # A space more would be a token more, were those at the end not dropped, and runs made one.
        collapses = len(steps) > 1 and _collapses_spaces(steps[-1], (" ", _SPACE_MARK))
        if not (collapses and steps[-2].get("strip_right")):
            raise _refusal("spaces that are marked and not collapsed")
        steps = steps[:-2]
    for index, step in enumerate(steps):
        # SentencePiece's table looks at grapheme clusters; those that `may_join` judges are the text's own.
        table = step["type"] == "Precompiled" and all(s["type"] == "Lowercase" for s in steps[:index])
        if not (table or step["type"] in _LOCAL_NORMALIZERS or _collapses_spaces(step, (" ",))):
            raise _refusal(f"the normalizer {step['type']}")


def _collapses_spaces(step: dict[str, Any], into: Sequence[str]) -> bool:
    return step.get("pattern") == {"Regex": " {2,}"} and step.get("content") in into


# --------------------------------------------------------------------------- what is tried out


def _normalize(tokenizer: tokenizers.Tokenizer, text: str) -> str:
    return text if tokenizer.normalizer is None else tokenizer.normalizer.normalize_str(text)


def _pre_tokens(tokenizer: tokenizers.Tokenizer, text: str) -> list[str]:
    split = tokenizer.pre_tokenizer.pre_tokenize_str(_normalize(tokenizer, text))
    return [piece for piece, _ in split]


def _is_border(tokenizer: tokenizers.Tokenizer, cut: str, keeps: bool = False) -> bool:
    """Whether the model gets what it gets for both sides, and between them the cut itself if that is kept."""
    for before, after in _PROBES:
        sides = [_pre_tokens(tokenizer, side) for side in (before, after)]
        for between in (cut, cut + cut):
            middle = list(between) if keeps else []
            if _pre_tokens(tokenizer, before + between + after) != sides[0] + middle + sides[1]:
                return False
    return True


def _has_whitespace(text: str) -> bool:
    return any(map(str.isspace, text))


def _may_share_a_grapheme(word: str) -> bool:
    """Whether whitespace beside the word could be part of its first or last grapheme cluster.

    The rules are GB9 to GB9b of Unicode Standard Annex 29. The answer errs on the side of yes, also for
    characters that are newer than Python's tables.
    """
    return _extends(word[0]) or _prepends(word[-1])


@functools.lru_cache(maxsize=1 << 16)
def _extends(character: str) -> bool:
    """Marks and what is like them: a vowel of Thai and one of Lao, half-width sound marks, skin tones."""
    like_a_mark = character in "\u0e33\u0eb3\uff9e\uff9f" or "\U0001f3fb" <= character <= "\U0001f3ff"
    return like_a_mark or unicodedata.category(character)[0] in "MC"


@functools.lru_cache(maxsize=1 << 16)
def _prepends(character: str) -> bool:
    """Format characters such as the Arabic number sign, and some letters of Brahmic scripts."""
    brahmic = character == "\u0d4e" or "\U00011000" <= character <= "\U00011fff"
    return brahmic or unicodedata.category(character)[0] == "C"


def _may_join_marked_spaces(tokenizer: tokenizers.Tokenizer, added: _AddedTokens, word: str) -> bool:
    """Whether the word holds what else stands for a space, or a token at which the text falls apart."""
    try:
        normalized = _normalize(tokenizer, word)
    except (TypeError, UnicodeEncodeError):  # a lone surrogate: no valid Unicode, which Rust does not take
        return True
    return (
        _may_share_a_grapheme(word)
        or any(token in word for token in added.raw)
        or any(token in normalized for token in (_SPACE_MARK, *added.normalized))
    )


def _set_apart(
    tokenizer: tokenizers.Tokenizer, normalizers: _Steps, pre_tokenizers: _Steps, added: _AddedTokens
) -> tuple[str, str]:
    """Return the characters that are pre-tokens by themselves wherever they stand.

    BERT's pre-tokenizer has many. Those that occur in added tokens do not count.

    Returns:
        Punctuation, and ranges of Chinese characters as in a regular expression's set.
    """
    plain = all(step["type"] in _PLAIN_NORMALIZERS for step in normalizers)
    if [step["type"] for step in pre_tokenizers] != ["BertPreTokenizer"] or not plain:
        return "", ""
    taken = set("".join((*added.raw, *added.normalized)))
    taken |= {"_"} if added.word_characters_matter else set()
    alone = [c for c in string.punctuation if c not in taken and _is_border(tokenizer, c, keeps=True)]
    chinese = any(step.get("handle_chinese_chars") for step in normalizers)
    chinese = chinese and not re.search(f"[{_CHINESE}]", "".join(taken))
    return "".join(alone), _CHINESE if chinese else ""


def _delimiter(
    tokenizer: tokenizers.Tokenizer, alone: str, may_join: Callable[[str], bool] | None
) -> tuple[str, int] | None:
    """Choose a rare character that needs no space, else the last word: most vocabularies go by frequency."""

    def is_token(text: str, token_id: int | None) -> bool:
        return tokenizer.encode(text, add_special_tokens=False).ids == [token_id]

    for character in filter(alone.__contains__, _RARE_PUNCTUATION):
        token_id = tokenizer.token_to_id(character)
        if token_id is not None and is_token(character, token_id):
            return character, token_id
    last = tokenizer.get_vocab_size(with_added_tokens=False) - 1
    for token_id in range(last, max(-1, last - _DELIMITERS_TRIED), -1):
        word = (tokenizer.id_to_token(token_id) or "").removeprefix(_SPACE_MARK)
        known = word.isalpha() and not (may_join is not None and may_join(word))
        if known and is_token(word, token_id):
            return f" {word} ", token_id
    return None
