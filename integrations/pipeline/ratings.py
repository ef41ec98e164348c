"""Bradley–Terry ratings on the Elo scale, from pairwise preferences between completions of several models."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from fastreward.errors import InputError, NonFiniteError
from fastreward.rewards.completion import describe

if TYPE_CHECKING:
    from fastreward.integrations.pipeline.evaluation import Evaluation
    from fastreward.scorer import Scorer

Judge = Callable[[str, str, str, Any], float]
"""``judge(prompt, a, b, reference)``: above 0 where a is better, below where b is, 0 for a tie; -1 to 1.

An explanation that is missing comes as an empty text.
"""

ELO_POINTS: Final = 400 / math.log(10)  # of one unit of log strength
CENTRE: Final = 1500.0
TIE: Final = 2e-6  # cosines nearer to each other than the scorer promises to be right are a tie
ITERATIONS: Final = 100_000
CONVERGED: Final = 1e-10  # largest change of a log strength


@dataclass(frozen=True)
class Ratings:
    """How models compare.

    Attributes:
        names: K models.
        elo: K ratings: 400 points more are odds of ten to one.
        low: K lower ends of intervals of 95 %; equal to `elo` without a bootstrap.
        high: Their upper ends.
        wins: [K, K], fp64, on the CPU: how often the row's model beat the column's, ties as half.
        judge: Who preferred.
        prior: Games that were added to each pair as a tie.
    """

    names: tuple[str, ...]
    elo: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    wins: Tensor
    judge: str
    prior: float

    def as_dict(self) -> dict[str, Any]:
        """Return all of it in plain Python, for JSON."""
        rows = zip(self.names, self.elo, self.low, self.high, strict=True)
        models = {name: {"elo": elo, "low": low, "high": high} for name, elo, low, high in rows}
        return {"judge": self.judge, "prior": self.prior, "models": models, "wins": self.wins.tolist()}


def bradley_terry(
    results: Mapping[str, Evaluation],
    *,
    judge: Judge | None = None,
    judge_name: str | None = None,
    scorer: Scorer | None = None,
    both_orders: bool = True,
    prior: float = 0.5,
    anchor: str | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Ratings:
    """Rate models by whose explanation is preferred, question by question.

    The intervals are percentiles of a bootstrap over questions, since what is said of one question by several
    pairs is not independent. They say nothing of the judge's own errors.

    Args:
        results: K evaluations by name, of the same questions.
        judge: Compares two explanations. ``None`` is the encoder: the higher cosine to the reference wins. It
            is a check that training did what its reward asks for, not an opinion from outside.
        judge_name: What the result calls the judge; ``None`` is the function's own name.
        scorer: The encoder where `judge` is ``None``; ``None`` for the default one.
        both_orders: Ask a judge twice, with a and b exchanged, and take the mean: judges that are language
            models prefer a place.
        prior: Games that are added to each pair as a tie, so that a model that wins all has a finite rating.
            With 0, each sample of the bootstrap must determine the ratings as well.
        anchor: The model whose rating is 1500; ``None`` makes 1500 the mean.
        bootstrap: Samples; 0 for no intervals.
        seed: Of the samples.

    Raises:
        InputError: Fewer than two models, other questions, an unknown anchor; a judge returned what is no
            number from -1 to 1; or with a prior of 0 the games do not determine the ratings.

    Example:
        >>> from fastreward.integrations.pipeline.evaluation import Evaluation
        >>> def brief(prompt, a, b, reference):
        ...     return float((len(a) < len(b)) - (len(a) > len(b)))
        >>> short, long = (
        ...     Evaluation.of_texts(["?"], [text], ["It beats."]) for text in ("It pumps.", "It pumps blood.")
        ... )
        >>> ratings = bradley_terry({"short": short, "long": long}, judge=brief, bootstrap=0)
        >>> [round(rating) for rating in ratings.elo], ratings.judge
        ([1640, 1360], 'brief')

    Source: Bradley and Terry, Rank Analysis of Incomplete Block Designs (1952); `strengths` has the method.
    """
    names = tuple(results)
    if len(names) < 2:
        raise InputError("two evaluations at least", str(len(names)), "Pass {name: evaluation, …}.")
    if anchor is not None and anchor not in names:
        raise InputError(f"an anchor among {', '.join(names)}", repr(anchor), "Correct the name.")
    if not (isinstance(bootstrap, int) and bootstrap >= 0):
        raise InputError("bootstrap of 0 or more", describe(bootstrap), "Pass 1000, or 0 for no intervals.")
    _require_same_questions(results)
    if judge is None:
        outcomes, called = _by_encoder(results, scorer)
    else:
        outcomes = _by_judge(list(results.values()), judge, both_orders)
        called = judge_name or str(getattr(judge, "__name__", type(judge).__name__))
    wins = outcomes.sum(dim=0)
    elo = _elo(strengths(wins, prior), names, anchor)
    low = high = elo
    if bootstrap:
        samples = _resampled(outcomes, bootstrap, seed)
        drawn = _elo(strengths(samples, prior), names, anchor)
        bounds = torch.quantile(drawn, torch.tensor([0.025, 0.975], dtype=drawn.dtype), dim=0)
        low, high = bounds[0], bounds[1]
    return Ratings(names, tuple(elo.tolist()), tuple(low.tolist()), tuple(high.tolist()), wins, called, prior)


def strengths(wins: Tensor, prior: float = 0.5) -> Tensor:
    """Fit the log strengths s of the model P(i beats j) = 1 / (1 + exp(s_j - s_i)) by maximum likelihood.

    By minorisation and maximisation: each strength p = exp(s) becomes w_i / Σ_j n_ij / (p_i + p_j), with w_i
    the wins of i and n_ij the games of i and j, until nothing moves.

    Args:
        wins: [..., K, K], how often the row beat the column, a tie as half; what stands on the diagonal does
            not count.
        prior: Games that are added to each pair as a tie.

    Returns:
        [..., K], fp64, on the CPU, with mean 0.

    Raises:
        InputError: The shape is another, a number is negative, or, with a prior of 0, some models never beat
            any of the others, which leaves the ratings without a maximum.

    Example:
        >>> s = strengths(torch.tensor([[0.0, 3.0], [1.0, 0.0]]), prior=0.0)
        >>> round(float((s[0] - s[1]).exp()), 6)
        3.0

    Source: Hunter, MM Algorithms for Generalized Bradley–Terry Models (Annals of Statistics 32, 2004).
    """
    wins = wins.detach().to("cpu", torch.float64)
    count = wins.shape[-1]
    if wins.dim() < 2 or wins.shape[-2] != count or not bool(((wins >= 0) & wins.isfinite()).all()):
        raise InputError("wins of 0 or more, [K, K]", f"{list(wins.shape)}", "Count wins, a tie as half.")
    if not (isinstance(prior, int | float) and 0 <= prior < math.inf):
        raise InputError("a prior of 0 or more games", describe(prior), "Pass 0.5.")
    others = 1 - torch.eye(count, dtype=torch.float64)
    wins = (wins + prior / 2) * others
    if prior == 0:
        _require_connected(wins)
    games, won = wins + wins.mT, wins.sum(dim=-1)
    log_p = torch.zeros_like(won)
    for _ in range(ITERATIONS):
        p = log_p.exp()
        shares = games / (p.unsqueeze(-1) + p.unsqueeze(-2))
        update = won.log() - shares.sum(dim=-1).log()
        update = update - update.mean(dim=-1, keepdim=True)
        moved = float((update - log_p).abs().max()) if update.numel() else 0.0
        log_p = update
        if moved < CONVERGED:
            return log_p
    raise NonFiniteError("ratings that converge", f"a change of {moved:.1e}", "Pass a larger prior.")


def _require_connected(wins: Tensor) -> None:
    """Without a prior, each model must have beaten each other, directly or by way of others."""
    reached = (wins > 0) | torch.eye(wins.shape[-1], dtype=torch.bool)
    for _ in range(max(1, math.ceil(math.log2(max(2, wins.shape[-1]))))):
        reached = (reached.double() @ reached.double()) > 0
    if not bool(reached.all()):
        raise InputError(
            "games in which each model beats each other, if only by way of a third",
            "models that never do",
            "Pass prior=0.5, or compare more completions.",
        )


def _require_same_questions(results: Mapping[str, Evaluation]) -> None:
    first_name, first = next(iter(results.items()))
    for name, result in results.items():
        if result.questions != first.questions or result.references != first.references:
            expected = f"the questions and references of {first_name!r} in all evaluations"
            raise InputError(expected, f"others in {name!r}", "Evaluate all models with the same rows.")
    if not first.questions:
        raise InputError("a question at least", "none", "Evaluate with some rows.")


def _by_encoder(results: Mapping[str, Evaluation], scorer: Scorer | None) -> tuple[Tensor, str]:
    """[N, K, K]: 1 where the row's cosine is the higher, half for a tie; and what the judge is called."""
    from fastreward.scorer import Scorer

    scorer = Scorer() if scorer is None else scorer
    columns = []
    for result in results.values():
        found = scorer.score([text or "" for text in result.explanations], result.references).double()
        # What has no explanation loses to all that have one, however far off.
        missing = torch.tensor([not text for text in result.explanations])
        columns.append(found.masked_fill(missing, -2.0))
    cosines = torch.stack(columns, dim=1)
    ahead = cosines.unsqueeze(2) - cosines.unsqueeze(1)
    outcomes = (ahead > TIE).double() + 0.5 * (ahead.abs() <= TIE).double()
    name = scorer.encoder_name.removeprefix("sentence-transformers/")
    return outcomes * (1 - torch.eye(len(columns), dtype=torch.float64)), f"encoder {name}"


def _by_judge(results: Sequence[Evaluation], judge: Judge, both_orders: bool) -> Tensor:
    """[N, K, K]: the share of a win that each row has over each column, by a judge."""
    first = results[0]
    outcomes = torch.zeros(len(first.questions), len(results), len(results), dtype=torch.float64)
    for i, j in itertools.combinations(range(len(results)), 2):
        for n, (question, reference) in enumerate(zip(first.questions, first.references, strict=True)):
            a, b = (result.explanations[n] or "" for result in (results[i], results[j]))
            ahead = verdict(judge, question, a, b, reference, both_orders)
            outcomes[n, i, j], outcomes[n, j, i] = (1 + ahead) / 2, (1 - ahead) / 2
    return outcomes


def verdict(judge: Judge, question: str, a: str, b: str, reference: Any, both_orders: bool) -> float:
    """Ask a judge, once or in both orders: how far a is ahead of b, from -1 to 1.

    Raises:
        InputError: The judge's answer is no number from -1 to 1.
    """
    answers = [judge(question, a, b, reference)]
    if both_orders:
        answers.append(judge(question, b, a, reference))
    for answer in answers:
        if not (isinstance(answer, int | float) and -1 <= answer <= 1):
            raise InputError("a judge's number from -1 to 1", describe(answer), "Return 1, 0 or -1.")
    return float(answers[0]) if len(answers) == 1 else (answers[0] - answers[1]) / 2


def _resampled(outcomes: Tensor, samples: int, seed: int) -> Tensor:
    """Wins in samples of the questions, drawn with replacement: [samples, K, K]."""
    count = outcomes.shape[0]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(count, (samples, count), generator=generator)
    times = torch.zeros(samples, count, dtype=torch.float64)
    times.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    return torch.einsum("sn,nij->sij", times, outcomes)


def _elo(log_strengths: Tensor, names: tuple[str, ...], anchor: str | None) -> Tensor:
    if anchor is not None:
        place = names.index(anchor)
        log_strengths = log_strengths - log_strengths[..., place : place + 1]
    return CENTRE + ELO_POINTS * log_strengths
