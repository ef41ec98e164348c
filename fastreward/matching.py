"""Texts matched with references token by token, a bounded number of hidden states in memory at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from fastreward.configuration import ScorerStats
from fastreward.encoders.numerics import own_numerics
from fastreward.engine import Engine
from fastreward.errors import InputError
from fastreward.ops.checks import describe
from fastreward.ops.maxsim import maxsim
from fastreward.packing import upload
from fastreward.text_arguments import Text

Pair: TypeAlias = tuple[Text, Text]
"""A text and its reference."""

CHARS_AT_ONCE: Final = {"cpu": 2**17, "cuda": 2**20}
"""Characters of the texts that are matched at once: some 30,000 tokens on a CPU and 250,000 on a GPU, whose
hidden states take 50 MB (384 columns in fp32) and 400 MB (768 columns in bf16). Four bytes of a text that is
given as token ids are a token too."""


class _Text(NamedTuple):
    """What is kept of a text: hidden states [L, D] and its tokens' weights [L]."""

    states: Tensor
    weights: Tensor


class _Packed(NamedTuple):
    """Texts one after another: hidden states [T, D], weights [T], offsets in tokens, the longest text."""

    states: Tensor
    weights: Tensor
    offsets: list[int]
    longest: int


def match(
    engine: Engine,
    texts: Sequence[Text],
    references: Sequence[Sequence[Text]],
    token_weights: Tensor | None,
) -> tuple[Tensor, ScorerStats]:
    """Match each text with its references, both ways, and take the one with the best F1.

    Every distinct text is encoded once. Special tokens weigh 0 and can be matched, as in the bert-score
    package.

    Args:
        engine: Encodes the texts.
        texts: N texts.
        references: For each text one reference at least.
        token_weights: [V], floating, the weight of each token id, finite and 0 or more; None is 1 for all.

    Returns:
        Precision, recall and F1, [3, N], fp32, on the CPU; and what was done. NaN wins over every F1.

    Raises:
        InputError: If `token_weights` has another shape or no floating dtype, or a weight is negative or not
            finite.
    """
    if token_weights is not None:
        token_weights = _checked(token_weights, engine.vocab_size)
    pairs: dict[Pair, int] = {}
    chosen = [
        [pairs.setdefault((text, reference), len(pairs)) for reference in options]
        for text, options in zip(texts, references, strict=True)
    ]
    if not pairs:
        return torch.empty((3, 0), dtype=torch.float32, device="cpu"), ScorerStats()
    scores, stats = _match_pairs(engine, list(pairs), token_weights)
    handed_over = ScorerStats(
        texts=len(texts) + sum(map(len, references)),
        unique_texts=len(set(texts)) + len({reference for _, reference in pairs}),
    )
    scores = scores.cpu()
    f1 = scores[2].nan_to_num(nan=float("inf")).tolist()
    best = [max(options, key=lambda pair: f1[pair]) for options in chosen]
    return scores[:, best], handed_over + stats


def _match_pairs(
    engine: Engine, pairs: Sequence[Pair], token_weights: Tensor | None
) -> tuple[Tensor, ScorerStats]:
    """Match distinct pairs: [3, pairs], on the encoder's device.

    They are taken in their order, as many at once as `CHARS_AT_ONCE` and the memory
    allow. A text that is needed again later is kept until then: memory is bounded where pairs that share
    texts stand near each other.
    """
    device = engine.device
    special = torch.from_numpy(np.unique(engine.tokenizer.frame([]))).to(device)
    by_id = None if token_weights is None else token_weights.to(device)
    # A token's hidden states, and the copy that is matched: a character is a quarter of them.
    char_bytes = engine.hidden_size * engine.encoder.dtype.itemsize // 2
    parts = list(_parts(pairs, engine.budget.at_once(char_bytes, CHARS_AT_ONCE[device.type])))
    last_needed = {text: number for number, part in enumerate(parts) for text in chain.from_iterable(part)}
    known: dict[Text, _Text] = {}
    scores, stats = [], ScorerStats()
    for number, part in enumerate(parts):
        missing = [text for text in dict.fromkeys(chain.from_iterable(part)) if text not in known]
        if missing:
            encoded, spent = engine.token_states(missing)
            stats += spent
            lengths = [len(ids) for _, ids in encoded]
            weights = _weights(torch.cat([ids for _, ids in encoded]), special, by_id)
            for text, (states, _), weight in zip(
                missing, encoded, weights.split_with_sizes(lengths), strict=True
            ):
                known[text] = _Text(states, weight)
        scores.append(_match_part(part, known))
        known = {text: tokens for text, tokens in known.items() if last_needed[text] > number}
        for text in known.keys() & set(missing):
            # Copies: a part of a batch would keep the whole batch alive.
            known[text] = _Text(*(tensor.clone() for tensor in known[text]))
    return torch.cat(scores, dim=1), stats


def _checked(token_weights: object, vocab_size: int) -> Tensor:
    """Check the weights of the token ids: [V], fp32."""
    expected = f"token_weights [{vocab_size}] in a floating dtype, one for each token id"
    if not isinstance(token_weights, Tensor):
        raise InputError(expected, f"a {type(token_weights).__name__}", "Pass a tensor, or None for none.")
    if token_weights.shape != (vocab_size,) or not token_weights.is_floating_point():
        raise InputError(expected, describe(token_weights), "Make them for the scorer's tokenizer.")
    weights = token_weights.detach().float()
    fits = weights.isfinite() & (weights >= 0)
    if not bool(fits.all()):
        token = int(fits.logical_not().nonzero()[0])
        raise InputError(
            "finite token_weights of 0 or more",
            f"{float(token_weights[token])} for the token id {token}",
            "Leave out what made it, or clip it.",
        )
    return weights


def _weights(ids: Tensor, special: Tensor, token_weights: Tensor | None) -> Tensor:
    """Weigh a text's tokens [L]: [L], fp32."""
    weights = ids.new_ones(ids.shape, dtype=torch.float32) if token_weights is None else token_weights[ids]
    return weights.masked_fill(torch.isin(ids, special), 0.0)


def _parts(pairs: Sequence[Pair], max_chars: int) -> Iterator[list[Pair]]:
    """Split pairs at `max_chars` characters; of a part's references each counts once, as it is held once."""
    part: list[Pair] = []
    references: set[Text] = set()
    room = max_chars
    for text, reference in pairs:
        size = len(text) + len(reference) * (reference not in references)
        if part and size > room:
            yield part
            part, references, room = [], set(), max_chars
            size = len(text) + len(reference)
        part.append((text, reference))
        references.add(reference)
        room -= size
    yield part


def _match_part(part: Sequence[Pair], known: dict[Text, _Text]) -> Tensor:
    """Precision, recall and F1 of pairs whose texts are known: [3, pairs]."""
    rows = {reference: row for row, reference in enumerate(dict.fromkeys(r for _, r in part))}
    candidates = _pack(known[text] for text, _ in part)
    references = _pack(known[reference] for reference in rows)
    device = candidates.states.device
    numbers = (candidates.offsets, references.offsets, [rows[reference] for _, reference in part])
    arrays = [np.array(values, dtype=np.int32) for values in numbers]
    candidate_offsets, reference_offsets, reference_index = upload(arrays, device)
    with own_numerics(device, torch.float32):
        result = maxsim(
            candidates.states,
            candidate_offsets,
            references.states,
            reference_offsets,
            reference_index,
            candidate_weights=candidates.weights,
            reference_weights=references.weights,
            max_candidate=candidates.longest,
            max_reference=references.longest,
        )
        return torch.stack([result.precision, result.recall, result.f1])


def _pack(texts: Iterable[_Text]) -> _Packed:
    states, weights = zip(*texts, strict=True)
    lengths = [len(text) for text in weights]
    return _Packed(torch.cat(states), torch.cat(weights), [0, *accumulate(lengths)], max(lengths))
