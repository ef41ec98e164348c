"""An exact cache of words in front of a tokenizer: a known word is not tokenised again."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Final, NamedTuple, TypeAlias, cast

import numpy as np
import tokenizers
from numpy.typing import NDArray

from fastreward.errors import InputError
from fastreward.separation import find_separation

TokenIds: TypeAlias = NDArray[np.int32]
"""Ids of one text: [T], int32."""

WORD_CACHE_BYTES: Final = 64 * 2**20
"""Bound on the memory of a cache unless told otherwise: some 300,000 words."""

_MAX_WORD_CHARS: Final = 64  # what is longer, a URL or a line of Chinese, hardly ever comes again
# What an entry takes beside characters and ids, at most: 44 bytes of a dict that has just grown, the heads of
# a str, 76, and of a bytes object, 33, and two sizes rounded up to multiples of 16.
_ENTRY_BYTES: Final = 44 + 76 + 33 + 30
_BLOCK_TEXTS: Final = 4096  # texts whose misses are tokenised together; bounds what is held meanwhile
_CHUNK_WORDS: Final = 512  # words that are tokenised as one text; the tokenizer's threads share the texts
_KEPT_AT_ONCE: Final = 64  # entries whose bytes are summed together
_NO_TOKEN: Final = -1  # an id that no token has
# Its bytes. Packed ids may be split there: read from the left, the first four bytes of 255 in a row begin
# where an id begins, for the last byte of every other id is less.
_BORDER: Final = np.int32(_NO_TOKEN).tobytes()
_NO_IDS: Final[TokenIds] = np.zeros(0, dtype=np.int32)


class _Gaps(NamedTuple):
    """A text with words that are not known: the ids of its words, and which are missing."""

    ids: list[bytes]  # None at the places
    places: list[int]
    words: list[str]  # those at the places; the others need not be held


class WordCache:
    """Ids of the words seen so far, and of texts by them; safe to use from several threads.

    A text of known words takes no lock and does not reach the tokenizer. Words that are not known are
    gathered from 4,096 texts at a time, each once, and tokenised in one call, which releases the GIL. Texts
    that may not be cut (see `separation`) are tokenised whole, in the same call. So the ids are always the
    tokenizer's own.

    Two generations bound the memory. A word goes into the younger one; when that is full, it becomes the
    older one, whose predecessor is dropped. A word that is asked for again comes back from there.

    Args:
        tokenizer: It must neither pad nor truncate, and stay as it is from now on.
        max_bytes: Bound on the memory of words and ids; 0 keeps nothing.

    Raises:
        InputError: If the tokenizer's texts cannot be cut at whitespace, or `max_bytes` is negative.

    Example:
        >>> vocabulary = {"[UNK]": 0, "a": 1, ".": 2}
        >>> bert = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
        >>> bert.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        >>> WordCache(bert).encode(["a b a.", ""])
        [array([1, 0, 1, 2], dtype=int32), array([], dtype=int32)]
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, *, max_bytes: int = WORD_CACHE_BYTES) -> None:
        if max_bytes < 0:
            raise InputError("a cache size of 0 bytes or more", str(max_bytes), "Pass 0 to keep nothing.")
        self._tokenizer = tokenizer
        self._separation = find_separation(tokenizer)
        self._generation_bytes = max_bytes // 2
        # Entries are added to a generation under the lock and never taken out, so that readers need none.
        self._recent: dict[str, bytes] = {}
        self._older: dict[str, bytes] = {}
        self._recent_bytes = self._older_bytes = 0
        self._lock = threading.Lock()
        if (
            self._separation.delimiter is not None
        ):  # known, it is never among the words that it stands between
            delimiter, token_id = self._separation.delimiter
            self._keep({delimiter.strip(): np.int32(token_id).tobytes()})

    @property
    def size_bytes(self) -> int:
        """Bytes of the words and ids that are kept now."""
        return self._recent_bytes + self._older_bytes

    def __len__(self) -> int:
        return len(self._recent.keys() | self._older.keys())

    def hit_rate(self, texts: Iterable[str]) -> float:
        """Share of the words of some texts that are known now, repetitions counted; 0.0 if there are none."""
        words = [word for text in texts for word in text.split()]
        return sum(word in self._recent or word in self._older for word in words) / max(1, len(words))

    def encode(self, texts: Sequence[str]) -> list[TokenIds]:
        """Tokenise N texts without special tokens, however long.

        Returns:
            N arrays [T], int32, not to be written to: what `encode_batch` of the tokenizer gives. A lone
            surrogate counts as U+FFFD.
        """
        encoded: list[TokenIds] = []
        for start in range(0, len(texts), _BLOCK_TEXTS):
            encoded += self._encode_block(texts[start : start + _BLOCK_TEXTS])
        return encoded

    def _encode_block(self, texts: Sequence[str]) -> list[TokenIds]:
        # None for a word that is not known; `join` stumbles over it, a check that costs known words nothing.
        look_up = cast("Callable[[str], bytes]", self._recent.get)
        encoded: list[TokenIds] = []
        pending: dict[int, _Gaps] = {}
        for index, text in enumerate(texts):
            words = text.split()
            ids = list(map(look_up, words))
            try:
                encoded.append(np.frombuffer(b"".join(ids), dtype=np.int32))
            except TypeError:
                encoded.append(_NO_IDS)
                places = [place for place, known in enumerate(ids) if known is None]
                pending[index] = _Gaps(ids, places, [words[place] for place in places])
        whole = self._not_to_be_cut(texts)
        if pending or whole:
            self._complete(texts, encoded, pending, whole)
        return encoded

    def _not_to_be_cut(self, texts: Sequence[str]) -> set[int]:
        # Finds are rare: searching all texts at once is faster than one after the other.
        together = "\n".join(texts)
        found = [cut for cut in self._separation.whole if cut in together]
        return {index for index, text in enumerate(texts) for cut in found if cut in text}

    def _complete(
        self,
        texts: Sequence[str],
        encoded: list[TokenIds],
        pending: dict[int, _Gaps],
        whole: set[int],
    ) -> None:
        """Fill in the texts that have words which are not known, and those that are not to be cut."""
        for index in whole:
            pending.pop(index, None)
        missing = dict.fromkeys(word for gaps in pending.values() for word in gaps.words)
        may_join = self._separation.may_join
        if may_join is not None and (joining := set(filter(may_join, missing))):
            whole |= {index for index, gaps in pending.items() if not joining.isdisjoint(gaps.words)}
            missing = {word: None for word in missing if word not in joining}
        order = sorted(whole)
        whole_ids, found = self._resolve([texts[index] for index in order], missing)
        for index, text_ids in zip(order, whole_ids, strict=True):
            encoded[index] = np.array(text_ids, dtype=np.int32)
        for index, gaps in pending.items():
            if index not in whole:
                for place, word in zip(gaps.places, gaps.words, strict=True):
                    gaps.ids[place] = found[word]
                encoded[index] = np.frombuffer(b"".join(gaps.ids), dtype=np.int32)

    def _resolve(
        self, whole: list[str], missing: dict[str, None]
    ) -> tuple[list[list[int]], dict[str, bytes]]:
        """Tokenise whole texts and the words that the younger generation lacked, and remember the words."""
        recent, older = self._recent, self._older
        # A word that has no ids, b"", counts as not known: it is rare, and tokenised again.
        found = {word: ids for word in missing if (ids := older.get(word))}
        words = [word for word in missing if word not in found]
        cut = self._separation.pieces
        pieces = cut("\n".join(words)) if cut is not None else words
        distinct = dict.fromkeys(pieces)
        distinct.pop("\n", None)
        known = {piece: ids for piece in distinct if (ids := recent.get(piece) or older.get(piece))}
        whole_ids, tokenized = self._tokenize(whole, [piece for piece in distinct if piece not in known])
        known |= tokenized
        kept = {piece: ids for piece, ids in known.items() if piece not in recent} if older else tokenized
        if cut is None:
            found |= known
        elif words:
            known["\n"] = _BORDER
            found.update(zip(words, b"".join(map(known.__getitem__, pieces)).split(_BORDER), strict=True))
        self._keep(kept | found)
        return whole_ids, found

    def _tokenize(self, whole: list[str], words: list[str]) -> tuple[list[list[int]], dict[str, bytes]]:
        """Tokenise texts, and words: many as one text, with a delimiter between them whose id is known.

        One by one, words take more than twice as long.
        """
        between, delimiter = self._separation.delimiter or ("", None)
        step = 1 if delimiter is None else _CHUNK_WORDS
        chunks = [words[start : start + step] for start in range(0, len(words), step)]
        joined = [between.join(chunk) for chunk in chunks]
        encoded = encode_batch(self._tokenizer, [*whole, *joined])
        found: dict[str, bytes] = {}
        for chunk, text, text_ids in zip(chunks, joined, encoded[len(whole) :], strict=True):
            ids = np.array(text_ids, dtype=np.int32)
            ids[ids == delimiter] = _NO_TOKEN
            by_word = ids.tobytes().split(_BORDER)
            if len(by_word) != len(chunk) or any(cut in text for cut in self._separation.whole):
                # The delimiter occurs in one of the words, or makes an added token with its neighbours.
                alone = encode_batch(self._tokenizer, chunk)
                by_word = [np.array(word_ids, dtype=np.int32).tobytes() for word_ids in alone]
            found.update(zip(chunk, by_word, strict=True))
        return encoded[: len(whole)], found

    def _keep(self, found: dict[str, bytes]) -> None:
        entries = iter(item for item in found.items() if len(item[0]) <= _MAX_WORD_CHARS)
        with self._lock:
            while some := dict(islice(entries, _KEPT_AT_ONCE)):
                # As wide as the widest of their characters asks for: never too low.
                size = sys.getsizeof("".join(some)) + len(b"".join(some.values())) + _ENTRY_BYTES * len(some)
                if size > self._generation_bytes:
                    continue
                if self._recent_bytes + size > self._generation_bytes:
                    self._older, self._older_bytes = self._recent, self._recent_bytes
                    self._recent, self._recent_bytes = {}, 0
                self._recent.update(some)
                self._recent_bytes += size


def encode_batch(tokenizer: tokenizers.Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Tokenise by the tokenizer itself, without special tokens. A lone surrogate counts as U+FFFD."""
    try:
        encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    except (TypeError, UnicodeEncodeError):  # a str that is no valid Unicode cannot cross into Rust
        valid = [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in texts]
        encodings = tokenizer.encode_batch_fast(valid, add_special_tokens=False)
    return [encoding.ids for encoding in encodings]
