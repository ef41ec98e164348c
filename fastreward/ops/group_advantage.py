"""Rewards of several kinds → one advantage per completion, relative to the other completions of its prompt.

Pure functions on tensors. Each takes `groups`: the number of consecutive rows that make a group, or an index
[N] that says which group a row is in, so that a group's rows may lie anywhere and groups may differ in size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from fastreward.errors import InputError
from fastreward.ops.checks import describe, require

Groups: TypeAlias = int | Tensor
"""Rows of a group, which are consecutive; or [N], integers: rows with the same number are a group."""

Scale = Literal["group", "batch", "none"]

EPS: Final = 1e-4
"""Added to a standard deviation before it divides, as in TRL."""

DTYPES: Final = (torch.float32, torch.float64)


def sum_then_normalize(
    rewards: Tensor, weights: Tensor, groups: Groups, *, scale: Scale = "group", eps: float = EPS
) -> Tensor:
    """Add K rewards up and compare each completion's total with those of its group.

    With r_ik the reward k of completion i and w_k its weight, over the rewards that have a value,

        t_i = Σ_k w_k r_ik
        a_i = (t_i - mean t) / (std t + eps),

    where the mean is over the group of i and the standard deviation (n - 1 in its denominator) over the group
    (`scale="group"`) or over all N (`"batch"`); `"none"` does not divide. A row without any value has no
    total, takes no part in mean and deviation, and has the advantage 0. So has the only row of a group.

    Computed in the dtype of `rewards`. In fp32 equal totals of a group need not cancel exactly: as eps is
    small, their rounding can leave advantages up to about 1e-3, as it does in TRL; in fp64 up to 1e-11.

    Args:
        rewards: [N, K], fp32 or fp64, finite, or NaN where a reward has no value.
        weights: [K], floating, finite.
        groups: Rows of a group, or a group's number for each row, [N].
        scale: What the deviation is taken over.
        eps: Added to it.

    Returns:
        [N], of the dtype of `rewards`; finite.

    Raises:
        InputError: A shape, dtype or value does not fit.

    Example:
        >>> rewards = torch.tensor([[0.9, 1.0], [0.5, 1.0], [0.2, 0.0], [torch.nan, 0.0]])
        >>> sum_then_normalize(rewards, torch.tensor([1.0, 0.5]), 2).round(decimals=2)
        tensor([ 0.7100, -0.7100,  0.7100, -0.7100])

    Source: GRPO (arXiv 2402.03300), section 4.1; means, deviations, missing values and eps are those of TRL
    1.16's `GRPOTrainer` with `multi_objective_aggregation="sum_then_normalize"`.
    """
    _check_scale(scale)
    totals = weighted_total(rewards, weights)
    table = _Table.of(groups, totals)
    grouped = table.spread(totals)
    centred = grouped - torch.nanmean(grouped, dim=1, keepdim=True)
    if scale == "group":
        centred = centred / (_nanstd(grouped, dim=1) + eps)
    elif scale == "batch":
        centred = centred / (_nanstd(totals, dim=0) + eps)
    return torch.nan_to_num(table.gather(centred), nan=0.0)


def normalize_then_sum(rewards: Tensor, weights: Tensor, groups: Groups, *, eps: float = EPS) -> Tensor:
    """Scale each of K rewards within its group before they are added up, so that none drowns another.

    With z_ik from `group_scores` and over the rewards that have a value,

        t_i = Σ_k w_k z_ik
        a_i = (t_i - mean t) / (std t + eps),

    mean and standard deviation (n - 1 in its denominator) over all rows with a value. There is no choice of
    scale: each reward is scaled by its group and the total by the batch, whatever TRL's `scale_rewards`
    says. A row without any value has the advantage 0; a reward without any in a group changes nobody's there.

    Args:
        rewards: [N, K], fp32 or fp64, finite, or NaN where a reward has no value.
        weights: [K], floating, finite.
        groups: Rows of a group, or a group's number for each row, [N].
        eps: Added to both deviations.

    Returns:
        [N], of the dtype of `rewards`, in which it is computed; finite.

    Raises:
        InputError: A shape, dtype or value does not fit.

    Example:
        >>> rewards = torch.tensor([[0.90, 1.0], [0.88, 0.0], [0.86, 1.0], [0.90, torch.nan]])
        >>> normalize_then_sum(rewards, torch.tensor([1.0, 1.0]), 4).round(decimals=2)
        tensor([ 1.0500, -1.1000, -0.5600,  0.6100])

    Source: GDPO (arXiv 2601.05242); means, deviations, missing values and eps are those of TRL 1.16's
    `GRPOTrainer` with `multi_objective_aggregation="normalize_then_sum"`.
    """
    totals = weighted_total(group_scores(rewards, groups, eps=eps), weights, like=rewards)
    centred = totals - torch.nanmean(totals)
    return torch.nan_to_num(centred / (_nanstd(totals, dim=0) + eps), nan=0.0)


def group_scores(rewards: Tensor, groups: Groups, *, eps: float = EPS) -> Tensor:
    """Scale each of K rewards to mean 0 and deviation 1 among the values of its group.

        z_ik = (r_ik - mean r_k) / (std r_k + eps)

    over the rows of i's group that have a value of reward k, with n - 1 in the denominator of the deviation.

    Args:
        rewards: [N, K], fp32 or fp64, finite, or NaN where a reward has no value.
        groups: Rows of a group, or a group's number for each row, [N].
        eps: Added to the deviation.

    Returns:
        [N, K], of the dtype of `rewards`; NaN where there is no value, or no second one in the group.

    Raises:
        InputError: A shape, dtype or value does not fit.

    Example:
        >>> group_scores(torch.tensor([[1.0], [3.0], [5.0], [torch.nan]]), 2).T.round(decimals=2)
        tensor([[-0.7100,  0.7100,     nan,     nan]])
    """
    _check_rewards(rewards)
    table = _Table.of(groups, rewards)
    grouped = table.spread(rewards)
    mean = torch.nanmean(grouped, dim=1, keepdim=True)
    return table.gather((grouped - mean) / (_nanstd(grouped, dim=1) + eps))


def weighted_total(rewards: Tensor, weights: Tensor, *, like: Tensor | None = None) -> Tensor:
    """Add K weighted rewards up, those without a value left out.

    Args:
        rewards: [N, K], fp32 or fp64, finite, or NaN where a reward has no value.
        weights: [K], floating, finite.
        like: [N, K]: where its whole row is NaN there is no total; None looks at `rewards` itself.

    Returns:
        [N], of the dtype of `rewards`; NaN where no reward has a value.

    Raises:
        InputError: A shape, dtype or value does not fit.

    Example:
        >>> weighted_total(torch.tensor([[1.0, torch.nan], [torch.nan, torch.nan]]), torch.tensor([2.0, 1.0]))
        tensor([2., nan])
    """
    _check_rewards(rewards)
    _check_weights(weights, rewards)
    totals = (rewards * weights.to(rewards.dtype)).nansum(dim=1)
    unknown = (rewards if like is None else like).isnan().all(dim=1)
    return totals.masked_fill(unknown, torch.nan)


def group_deviations(rewards: Tensor, groups: Groups) -> Tensor:
    """Measure how far each of K rewards spreads within a group, on average over the groups.

    Args:
        rewards: [N, K], fp32 or fp64, finite, or NaN where a reward has no value.
        groups: Rows of a group, or a group's number for each row, [N].

    Returns:
        [K], of the dtype of `rewards`: the mean of the groups' standard deviations (n - 1), of those groups
        that have two values or more; 0 where none has.

    Raises:
        InputError: A shape, dtype or value does not fit.

    Example:
        >>> group_deviations(torch.tensor([[1.0], [3.0], [5.0], [torch.nan]]), 2).round(decimals=4)
        tensor([1.4142])
    """
    _check_rewards(rewards)
    table = _Table.of(groups, rewards)
    deviations = _nanstd(table.spread(rewards), dim=1).squeeze(1)
    return torch.nan_to_num(torch.nanmean(deviations, dim=0), nan=0.0)


def advantage_shares(
    rewards: Tensor, weights: Tensor, groups: Groups, *, scale: Scale = "group", eps: float = EPS
) -> Tensor:
    """Say what share of the advantages' variance each of K rewards is answerable for.

    With x_ik = w_k r_ik, or 0 where there is no value, the total t_i = Σ_k x_ik, bars for the mean over i's
    group, and s_i the deviation of the total that divides the advantage of i,

        share_k = Σ_i (x_ik - x̄_k) (t_i - t̄) / s_i²  /  Σ_i (t_i - t̄)² / s_i²,

    the covariance of a part with the whole, by the variance of the whole. The shares sum to 1. One is
    negative if its reward pulls against the others. Rows without any value take no part.

    The scale matters: where all answers of a group are right, the totals differ by little, and scaled by
    their group these differences weigh as much as those between right and wrong in another.

    Args:
        rewards: [N, K], fp32 or fp64, finite, or NaN where a reward has no value. For `normalize_then_sum`
            pass the `group_scores`, and `scale="batch"`.
        weights: [K], floating, finite.
        groups: Rows of a group, or a group's number for each row, [N].
        scale: What s_i is taken over: `"group"`, with eps added, as in `sum_then_normalize`; for `"batch"`
            and `"none"` it is the same for all, and cancels.
        eps: Added to a group's deviation.

    Returns:
        [K], of the dtype of `rewards`; all 0 where no total differs from its group's.

    Raises:
        InputError: A shape, dtype or value does not fit.

    Example:
        >>> rewards = torch.tensor([[0.90, 1.0], [0.88, 0.0], [0.86, 1.0], [0.84, 0.0]])
        >>> advantage_shares(rewards, torch.tensor([1.0, 1.0]), 4).round(decimals=3)
        tensor([0.0210, 0.9790])

    Source: the covariance decomposition of a sum's variance, var(Σ x_k) = Σ_k cov(x_k, Σ x_k).
    """
    _check_scale(scale)
    _check_rewards(rewards)
    _check_weights(weights, rewards)
    table = _Table.of(groups, rewards)
    parts = torch.nan_to_num(rewards * weights.to(rewards.dtype), nan=0.0)
    parts = parts.masked_fill(rewards.isnan().all(dim=1, keepdim=True), torch.nan)
    grouped = table.spread(parts)
    centred = torch.nan_to_num(grouped - torch.nanmean(grouped, dim=1, keepdim=True), nan=0.0)
    if scale == "group":
        deviation = _nanstd(grouped.sum(dim=2, keepdim=True), dim=1)
        centred = centred / (torch.nan_to_num(deviation, nan=0.0) + eps)
    total = centred.sum(dim=2, keepdim=True)
    variance = total.square().sum()
    shares = (centred * total).sum(dim=(0, 1)) / torch.where(variance == 0, 1.0, variance)
    return shares.masked_fill(variance == 0, 0.0)


def _nanstd(values: Tensor, dim: int) -> Tensor:
    """Standard deviation along `dim` (kept), NaN left out, n - 1 below; NaN for fewer than two values."""
    squares = (values - torch.nanmean(values, dim=dim, keepdim=True)).square()
    # In the dtype of the values: a quotient of integers would be rounded to the trainer's default dtype.
    count = (~values.isnan()).sum(dim=dim, keepdim=True, dtype=values.dtype)
    variance = torch.nanmean(squares, dim=dim, keepdim=True) * (count / (count - 1))
    return torch.where(count > 1, variance.sqrt(), torch.nan)


@dataclass(frozen=True)
class _Table:
    """Where each row of a batch stands in a table of groups, [G, L], with L rows in the longest group.

    Attributes:
        shape: G and L.
        cells: [N], each row's cell in the flattened table; None where rows fill it in their own order.
    """

    shape: tuple[int, int]
    cells: Tensor | None

    @classmethod
    def of(cls, groups: Groups, rows: Tensor) -> _Table:
        count = len(rows)
        if isinstance(groups, Tensor):
            return cls._of_index(groups, count)
        if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1 or count % groups:
            raise InputError(
                f"rows of a group that divide {count} rows, or a group's number for each row, as groups",
                repr(groups),
                "Pass num_generations with whole groups, or an index [N].",
            )
        return cls((count // groups, groups), None)

    @classmethod
    def _of_index(cls, index: Tensor, count: int) -> _Table:
        fits = index.shape == (count,) and not (index.is_floating_point() or index.is_complex())
        require(fits and index.dtype != torch.bool, "groups", f"[{count}] of integers", index)
        if not count:
            return cls((0, 1), None)
        _, group, sizes = torch.unique(index, return_inverse=True, return_counts=True)
        longest = int(sizes.max())
        order = torch.argsort(group, stable=True)
        starts = sizes.cumsum(0) - sizes
        place = torch.empty_like(order)
        place[order] = torch.arange(count, device=index.device) - starts[group[order]]
        return cls((len(sizes), longest), group * longest + place)

    def spread(self, rows: Tensor) -> Tensor:
        """[N, …] → [G, L, …], NaN where a group has no row."""
        shape = (*self.shape, *rows.shape[1:])
        if self.cells is None:
            return rows.reshape(shape)
        table = rows.new_full((self.shape[0] * self.shape[1], *rows.shape[1:]), torch.nan)
        table[self.cells] = rows
        return table.reshape(shape)

    def gather(self, table: Tensor) -> Tensor:
        """[G, L, …] → [N, …]."""
        flat = table.flatten(0, 1)
        return flat if self.cells is None else flat[self.cells]


def _check_scale(scale: object) -> None:
    if scale not in get_args(Scale):
        raise InputError("'group', 'batch' or 'none' as scale", repr(scale), "Correct the name.")


def _check_rewards(rewards: Tensor) -> None:
    require(rewards.ndim == 2 and rewards.dtype in DTYPES, "rewards", "[N, K] in fp32 or fp64", rewards)
    require(rewards.shape[1] > 0, "rewards", "[N, K] with a reward at least", rewards)
    # On CUDA values are not looked at: that would wait for the GPU.
    if not rewards.is_cuda and bool(rewards.isinf().any()):
        raise InputError(
            "finite rewards, or NaN where there is none", "infinity", "Bound the reward, or return None."
        )


def _check_weights(weights: Tensor, rewards: Tensor) -> None:
    fits = weights.shape == rewards.shape[1:] and weights.is_floating_point()
    require(fits, "weights", f"[{rewards.shape[1]}], floating", weights)
    if weights.device != rewards.device:
        raise InputError(
            f"weights on {rewards.device}, as the rewards", describe(weights), "Move them there."
        )
    if not weights.is_cuda and not bool(weights.isfinite().all()):
        raise InputError("finite weights", describe(weights), "Correct the weights.")
