"""Which language a text is written in, as far as function words and scripts tell. Exact, and modest.

A function word is one that every text of a language needs whatever it is about: articles, prepositions,
pronouns, conjunctions, auxiliary verbs. In the six languages below they are every third to every second word
of prose. What cannot be told: languages that are not listed, if they are written in Latin letters; languages
that share another script (Russian and Ukrainian are both "cyrillic", Chinese and Japanese "cjk"); a text of
few words; a list of terms, a table or a formula, which has no function words.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

_LISTS: Final = {
    "en": """
        the of and to in is are was were be been that this these those it its for with as by on at from or
        not but which who what when where while because since if then than so there their they them he she
        his her we our you your i an can could will would must should may might has have had do does did
        into only both each every any all more most such no nor whose also about after before between
        through over under again one
    """,
    "it": """
        il lo la i gli le un uno una di del dello della dei degli delle da dal dallo dalla dai dagli dalle
        in nel nello nella nei negli nelle a al allo alla ai agli alle su sul sullo sulla sui sugli sulle
        con per tra fra e ed o od ma che chi cui non né si ci vi ne è sono era erano essere ha hanno aveva
        avere può possono deve devono questo questa questi queste quello quella quelli quelle quindi
        perciò perché poiché se come quando mentre dove anche più meno ogni cioè solo soltanto dunque
        invece però sia suo sua suoi loro mi ti lui lei noi voi io tu ciò tutti tutte tutto tutta
    """,
    "fr": """
        le la les un une des du de d l et à au aux en dans par pour sur avec sans sous que qui quoi dont
        où est sont était étaient être a ont avait avoir ne pas plus moins ce cet cette ces il elle ils
        elles on nous vous je tu se sa son ses leur leurs mais ou donc car si comme quand lorsque aussi
        très tout tous toute toutes chaque peut peuvent doit doivent y lui même ainsi alors puis entre
    """,
    "es": """
        el la los las un una unos unas de del a al en con por para sin sobre entre y e o u pero que quien
        cual cuyo no ni se lo le les su sus es son era eran ser está están fue ha han había hay haber
        puede pueden debe deben este esta estos estas ese esa esos esas aquel muy más menos como cuando
        donde porque pues si también cada todo toda todos todas mi tu nos yo él ella ellos así luego desde
        hasta sólo solo
    """,
    "de": """
        der die das den dem des ein eine einen einem einer eines und oder aber denn weil dass ob wenn
        als wie wo in im ins an am auf aus bei beim mit nach von vom zu zum zur für durch über unter um
        vor zwischen ist sind war waren sein wird werden wurde hat haben hatte kann können muss müssen
        nicht kein keine auch nur noch so es er sie wir ihr ich du sich man dieser diese dieses jeder jede
        jedes alle daher also dann damit ihre seine mehr sehr
    """,
    "pt": """
        o a os as um uma uns umas de do da dos das em no na nos nas ao à aos às por pelo pela pelos pelas
        para com sem sobre entre e ou mas que quem qual cujo não nem se lhe seu sua seus suas é são era
        eram ser está estão foi há tem têm ter pode podem deve devem este esta estes estas esse essa isso
        isto aquele muito mais menos como quando onde porque pois também cada todo toda todos todas eu tu
        ele ela eles nós só já então até
    """,
}

FUNCTION_WORDS: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {language: frozenset(words.split()) for language, words in _LISTS.items()}
)
"""By language (ISO 639-1), words of which each is written in lower case."""

MIN_WORDS: Final = 8
"""Words below which there is no verdict."""

MIN_SHARE: Final = 0.2
"""Least share of function words in prose."""

MIN_LEAD: Final = 1.25
"""How many times as many function words as the second language has the first must have."""

MAX_COMPOSED: Final = 256
"""Characters between two spaces above which accents are left as they were typed."""

_WORD: Final = re.compile(r"[^\W\d_]+")

_SCRIPTS: Final = dict.fromkeys(["hiragana", "katakana", "katakana-hiragana", "ideographic"], "cjk")
"""By the first word of a letter's name, the script that stands for it. Japanese mixes three, now more of the
one, now of the other, so that they must be one here; with Chinese they then share it."""


@dataclass(frozen=True)
class LanguageGuess:
    """What is known of a text's language.

    Attributes:
        language: "en", "it", "fr", "es", "de" or "pt"; for another script its name in lower case ("cyrillic",
            "greek", "arabic", "cjk" …); ``None`` where it cannot be told.
        words: How many words were looked at.
        shares: By language the share of its function words, in [0, 1]; empty for another script.
    """

    language: str | None
    words: int
    shares: Mapping[str, float]


def guess_language(text: str) -> LanguageGuess:
    """Guess the language of a text from its function words, or from its script.

    Where most letters are not Latin their script is the verdict. Otherwise the verdict is the language whose
    function words are the largest share of all words, if that is a fifth or more, a quarter more than the
    second language has, and there are eight words at least. Time is linear in the text.

    Args:
        text: Any text.

    Returns:
        The guess.

    Example:
        >>> guess_language("The heart pumps blood through the vessels of the body.").language
        'en'
        >>> guess_language("Il cuore spinge il sangue nei vasi di tutto il corpo.").language
        'it'
        >>> guess_language("heart blood vessels body pump oxygen cells lungs").language is None
        True
        >>> guess_language("Сердце перекачивает кровь.").language
        'cyrillic'

    Source: the lists and the thresholds are this project's own.
    """
    text = _composed(text)
    script = _script(text)
    words = [word.casefold() for word in _WORD.findall(text)]
    if script is not None and script != "latin":
        return LanguageGuess(script, len(words), {})
    counts = Counter(words)
    shares = {
        language: sum(counts[word] for word in listed) / max(len(words), 1)
        for language, listed in FUNCTION_WORDS.items()
    }
    (first, most), (_, second), *_ = sorted(shares.items(), key=lambda item: -item[1])
    clear = len(words) >= MIN_WORDS and most >= MIN_SHARE and most >= MIN_LEAD * second
    return LanguageGuess(first if clear else None, len(words), shares)


def _composed(text: str) -> str:
    """Make "é" one letter however it was typed.

    Word by word, and no word is as long as what is left alone: sorting a long row of accents takes the square
    of its length.
    """
    return " ".join(
        unicodedata.normalize("NFC", piece) if len(piece) <= MAX_COMPOSED else piece for piece in text.split()
    )


def _script(text: str) -> str | None:
    """The script of more than half of the letters; ``None`` where there is none such."""
    scripts: Counter[str] = Counter()
    for character, count in Counter(text).items():
        if character.isalpha():
            # The first word of a letter's name is its script: LATIN SMALL LETTER A, CYRILLIC …, CJK ….
            first = unicodedata.name(character, "UNKNOWN").split()[0].lower()
            scripts[_SCRIPTS.get(first, first)] += count
    if not scripts:
        return None
    script, count = scripts.most_common(1)[0]
    return script if 2 * count > scripts.total() else None
