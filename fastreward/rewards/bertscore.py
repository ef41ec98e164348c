"""BERTScoreReward: how well a completion's tokens match its reference's, as a trainer's reward function."""

from __future__ import annotations

import math
import operator
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from fastreward.errors import InputError
from fastreward.rewards.completion import Extract, describe
from fastreward.rewards.reference_reward import NoText, ReferenceReward, as_list, reference_texts
from fastreward.scorer import Scorer
from fastreward.tokenization import Tokenizer

Part = Literal["f1", "precision", "recall"]

Idf: TypeAlias = Literal[False] | Iterable[object] | Mapping[int, float]
"""No weights, the reference texts to fit them on, or weights by token id."""

TEXTS_AT_ONCE: Final = 4096
"""Texts whose token ids are held at once while weights are fitted."""

LARGEST_WEIGHT: Final = torch.finfo(torch.float32).max


class BERTScoreReward(ReferenceReward):
    """Reward each completion by BERTScore: how well its tokens and those of a reference match.

    Each token is matched with the most similar one of the other text, by the cosine of their hidden states;
    precision is the mean over the completion's tokens, recall over the reference's, F1 their harmonic mean.
    With several references the one with the best F1 counts. Special tokens can be matched and do not count,
    as in the authors' package bert-score, and so, with equal hidden states, the scores are the same. The
    tokens of a prompt that the scorer sets before texts do count: a scorer for this reward should set none.

    A scorer whose encoder stops at an inner layer suits it best, ``Scorer("roberta-large", num_layers=17)``:
    the last layers belong to what the encoder was trained for. See `SemanticReward` for the form of the
    call, which is the same, and for what is kept when it is pickled.

    Args:
        scorer: The scorer to use, best shared by all rewards of a run; or the name or folder of an encoder,
            from which one is built when it is first needed; or ``None`` for the default encoder.
        reference: Name of the column with the references: for each completion a string or a list of strings.
            A reference is missing where it is ``None``, NaN, blank, or a list of nothing else.
        extract: The part of the completion to score: ``None`` for all of it, a tag's name such as
            ``"explanation"``, a compiled pattern or a function; `completion.Extractor` has the details.
        strip_thinking: Whether ``<think>…</think>`` is removed first.
        no_text: What a completion is worth from which nothing can be extracted: ``"zero"`` for 0.0, so that
            it is punished, or ``"none"`` for ``None``, so that the trainer leaves it out.
        score: Which of the three is the reward: ``"f1"``, ``"precision"`` or ``"recall"``.
        idf: How tokens are weighed. ``False``: all alike. Reference texts, best those of the whole data set:
            by inverse document frequency in them, fitted at the first call (`idf_weights`). A mapping from
            token id to weight: by that; an id that it lacks weighs as much as its heaviest, or what a
            `defaultdict` has for it. ``True``, which would fit the weights on the references of each call, is
            refused: a score would depend on the batch, and with one prompt in it all weights would be 0.
        rescale_baseline: What unrelated texts score with this encoder, below 1. The reward is then
            (score - baseline) / (1 - baseline), which spreads scores that are all close to 1, and 0.0 is what
            unrelated texts get. A pair with nothing to match, since one text has no token that weighs, keeps
            its 0.0, as that is no measurement. ``None`` leaves scores as they are.
        name: The reward's ``__name__``, under which trainers log it.

    Raises:
        InputError: An argument is not one of the above.

    Example:
        >>> reward = BERTScoreReward(Scorer(dtype="float32"), score="recall")
        >>> rewards = reward(
        ...     completions=["The heart pumps blood.", "Paris is in France."],
        ...     reference=["The heart pumps blood.", "The heart pumps blood."],
        ... )
        >>> [round(value, 2) for value in rewards]
        [1.0, 0.05]

    Source: BERTScore (arXiv 1904.09675).
    """

    _OF_THIS_PROCESS: ClassVar[frozenset[str]] = ReferenceReward._OF_THIS_PROCESS | {"_weights"}

    _READS_VECTORS = False  # it matches hidden states, and encodes for itself

    _weights: Tensor | None

    def __init__(
        self,
        scorer: Scorer | str | Path | None = None,
        *,
        reference: str = "reference",
        extract: Extract = None,
        strip_thinking: bool = True,
        no_text: NoText = "zero",
        score: Part = "f1",
        idf: Idf = False,
        rescale_baseline: float | None = None,
        name: str = "bertscore_reward",
    ) -> None:
        if score not in get_args(Part):
            raise InputError("'f1', 'precision' or 'recall' as score", describe(score), "Correct the name.")
        if rescale_baseline is not None and not (
            isinstance(rescale_baseline, int | float) and -1 <= rescale_baseline < 1
        ):
            raise InputError(
                "a rescale_baseline from -1 to below 1, or None",
                describe(rescale_baseline),
                "Pass the mean score of unrelated texts.",
            )
        self._part: Part = score
        self._baseline = rescale_baseline
        self._idf = _read_idf(idf)
        super().__init__(
            scorer,
            reference=reference,
            extract=extract,
            strip_thinking=strip_thinking,
            no_text=no_text,
            name=name,
        )

    def _start(self) -> None:
        super()._start()
        self._weights = None

    def _score(self, texts: list[str], references: list[list[str]]) -> list[float]:
        result = self.scorer.maxsim(texts, references, token_weights=self._token_weights())
        scores: Tensor = getattr(result, self._part)
        if self._baseline is not None:
            # With nothing to match all scores are exactly 0.0. Rescaled, they would fall below any real one.
            nothing = (result.precision == 0) & (result.recall == 0)
            scores = ((scores - self._baseline) / (1 - self._baseline)).masked_fill(nothing, 0.0)
        values: list[float] = scores.tolist()
        return values

    def _token_weights(self) -> Tensor | None:
        if self._weights is None and self._idf is not None:
            tokenizer = self.scorer.tokenizer
            # Two threads may fit them at once, and get the same.
            self._weights = (
                idf_weights(tokenizer, self._idf)
                if isinstance(self._idf, tuple)
                else self._idf.weights(tokenizer.vocab_size)
            )
        return self._weights

    def _options(self) -> dict[str, object]:
        options = super()._options()
        name = options.pop("name")
        return options | {
            "score": self._part,
            "idf": False if self._idf is None else _Described(self._idf),
            "rescale_baseline": self._baseline,
            "name": name,
        }


def idf_weights(tokenizer: Tokenizer, texts: Sequence[str]) -> Tensor:
    """Fit token weights on reference texts: inverse document frequency, as in BERTScore.

    Of M texts, d_t hold the token t, cut where the encoder cuts them; its weight is

        log((M + 1) / (d_t + 1)),

    so that a token of all texts weighs 0, as the special ones do, and one of none weighs the most.

    Args:
        tokenizer: The scorer's.
        texts: M texts, one at least.

    Returns:
        [V], fp32, on the CPU: a weight for each token id.

    Example:
        >>> tokenizer = Scorer().tokenizer
        >>> weights = idf_weights(tokenizer, ["the heart", "the lung", "the heart"])
        >>> the, heart = tokenizer(["the heart"])[0][1:3]
        >>> weights[[the, heart]]
        tensor([0.0000, 0.2877])

    Source: BERTScore (arXiv 1904.09675), section 3, with the smoothing of its authors' package.
    """
    documents = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    for first in range(0, len(texts), TEXTS_AT_ONCE):
        ids = tokenizer(texts[first : first + TEXTS_AT_ONCE])
        documents += np.bincount(np.concatenate([np.unique(text) for text in ids]), minlength=len(documents))
    return torch.from_numpy(np.log((len(texts) + 1) / (documents + 1)).astype(np.float32))


class _Given:
    """Weights by token id as they were given, and the weight of every other id.

    Raises:
        InputError: There are none, an id is no integer, or a weight, that of the other ids included, is no
            finite number of 0 or more in fp32.
    """

    def __init__(self, weights: Mapping[int, float]) -> None:
        if not weights:
            raise _bad_weights("0 weights")
        self.by_id = {_token_id(token): _weight(weight, repr(token)) for token, weight in weights.items()}
        factory = weights.default_factory if isinstance(weights, defaultdict) else None
        heaviest = max(self.by_id.values())
        self.other = heaviest if factory is None else _weight(factory(), "all others (default_factory)")

    def weights(self, vocab_size: int) -> Tensor:
        """Spread them over V ids: [V], fp32."""
        low, high = min(self.by_id), max(self.by_id)
        if low < 0 or high >= vocab_size:
            raise InputError(
                f"token ids from 0 to {vocab_size - 1}, the tokenizer's, in idf",
                f"ids from {low} to {high}",
                "Make the weights for the scorer's tokenizer.",
            )
        weights = torch.full((vocab_size,), self.other, dtype=torch.float32, device="cpu")
        weights[list(self.by_id)] = torch.tensor(list(self.by_id.values()), dtype=torch.float32, device="cpu")
        return weights

    def __len__(self) -> int:
        return len(self.by_id)


def _token_id(token: Any) -> int:
    try:
        return operator.index(token)
    except TypeError:
        raise _bad_weights(f"{describe(token)} as a token id") from None


def _weight(weight: Any, of: str) -> float:
    try:
        number = math.nan if isinstance(weight, str | bytes) else float(weight)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 <= number <= LARGEST_WEIGHT:
        raise _bad_weights(f"{describe(weight)} for {of}")
    return number


def _bad_weights(received: str) -> InputError:
    return InputError(
        "finite weights of 0 or more by token id (an int) as idf",
        received,
        "Correct it, or pass the reference texts themselves, and weights are fitted.",
    )


class _Described:
    """Stands in a repr for what would be too long."""

    def __init__(self, idf: tuple[str, ...] | _Given) -> None:
        self._idf = idf

    def __repr__(self) -> str:
        return f"<{len(self._idf)} {'texts' if isinstance(self._idf, tuple) else 'weights'}>"


def _read_idf(idf: object) -> tuple[str, ...] | _Given | None:
    if idf is False:
        return None
    if isinstance(idf, Mapping):
        return _Given(idf)
    if isinstance(idf, bool) or not isinstance(idf, Iterable) or isinstance(idf, str | bytes):
        raise InputError(
            "False, reference texts, or weights by token id as idf",
            describe(idf),
            "Pass the column of reference texts of the data set: idf=dataset['reference'].",
        )
    entries = enumerate(as_list("idf", idf))
    texts = tuple(text for index, entry in entries for text in reference_texts(entry, f"idf[{index}]"))
    if not texts:
        raise InputError("at least one reference text as idf", "none", "Pass idf=False for no weights.")
    return texts
