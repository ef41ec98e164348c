"""GRPO's losses: pure functions of the log-probabilities of a micro-batch of completions.

A name's suffix says what its axes are: B completions of a micro-batch, L tokens of the longest of them. So
`logprobs_BL[b, l]` is the log-probability of token l of completion b, and `mask_BL` says which tokens count.
"""

# ruff: noqa: N803, N806 - capitals are axes

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from fastreward.errors import InputError
from fastreward.integrations.grpo.config import Level, Objective
from fastreward.ops.checks import require

RowSums: TypeAlias = dict[str, tuple[Tensor, Tensor]]
"""By the name of a metric: for each completion the sum of its values, [B], and how many they are, [B]."""


@dataclass(frozen=True)
class UpdateSize:
    """The size of an update of all processes, so that the losses of its micro-batches add up to its loss."""

    completions: int  # those included that are masked or left out
    tokens: int  # of all completions, that count
    micro_batches: int


def k3_divergence(logprobs_BL: Tensor, ref_logprobs_BL: Tensor) -> Tensor:
    """Estimate each token's KL divergence of the policy from the reference: exp(d) - d - 1, d = ref - policy.

    Never negative, and unbiased where the policy drew the token.

    Source: Schulman, "Approximating KL Divergence" (2020), k3; GRPO (arXiv 2402.03300), equation 4.
    """
    difference = ref_logprobs_BL - logprobs_BL
    return torch.exp(difference) - difference - 1


def importance_ratios(logprobs_BL: Tensor, old_logprobs_BL: Tensor, mask_BL: Tensor, level: Level) -> Tensor:
    """Divide the policy's probabilities by those of the policy that wrote the completions, `old_logprobs_BL`.

    For ``"token"`` it returns [B, L] (PPO, arXiv 1707.06347), for ``"sequence"`` the geometric means over the
    tokens that count, [B, 1] (GSPO, arXiv 2507.18071).
    """
    log_ratio_BL = logprobs_BL - old_logprobs_BL
    if level == "token":
        return torch.exp(log_ratio_BL)
    length_B = mask_BL.sum(dim=1).clamp(min=1)
    return torch.exp((log_ratio_BL * mask_BL).sum(dim=1) / length_B).unsqueeze(1)


def _token_losses(logprobs_BL: Tensor, ratios: Tensor, advantages_B: Tensor, objective: Objective) -> Tensor:
    """Compute the loss of each token, or completion where `ratios` are [B, 1]; not yet divided.

    With ratio r and advantage a it is -min(r a, clip(r, 1 - epsilon, largest) a), and for ``"cispo"``
    -min(r, largest) a log p, where the ratio has no gradient.
    """
    advantages = advantages_B.unsqueeze(1)
    if objective.loss_type == "cispo":
        return -ratios.clamp(max=objective.largest_ratio).detach() * advantages * logprobs_BL
    clipped = ratios.clamp(1 - objective.epsilon, objective.largest_ratio)
    return -torch.min(ratios * advantages, clipped * advantages)


def _reduced(losses: Tensor, mask_BL: Tensor, size: UpdateSize, objective: Objective) -> Tensor:
    """Add up a micro-batch's losses, [B, L] or [B, 1], and divide as `Objective` says."""
    counted_BL = losses.expand_as(mask_BL).masked_fill(~mask_BL, 0.0)
    match objective.loss_type:
        case "grpo":
            lengths_B = mask_BL.sum(dim=1).clamp(min=1)
            return (counted_BL.sum(dim=1) / lengths_B).sum() / size.completions
        case "bnpo":
            return counted_BL.sum() / mask_BL.sum().clamp(min=1) / size.micro_batches
        case "dr_grpo":
            return counted_BL.sum() / (size.completions * objective.max_completion_length)
        case _:
            return counted_BL.sum() / max(size.tokens, 1)


def policy_loss(
    logprobs_BL: Tensor,
    old_logprobs_BL: Tensor,
    advantages_B: Tensor,
    mask_BL: Tensor,
    size: UpdateSize,
    objective: Objective,
    ref_logprobs_BL: Tensor | None = None,
) -> tuple[Tensor, RowSums]:
    """Compute the loss of a micro-batch.

    Args:
        logprobs_BL: Of the completions' tokens under the policy, floating, with a gradient.
        old_logprobs_BL: Under the policy that wrote them: in the first pass ``logprobs_BL.detach()``.
        advantages_B: Floating.
        mask_BL: Bool: the tokens that count. A row without any is worth nothing.
        size: Of the update that this micro-batch is a part of.
        objective: Which loss.
        ref_logprobs_BL: Under the reference model; needed unless `beta` is 0.

    Returns:
        The loss, a scalar, and by TRL's names how often ratios were clipped, and the divergence.

    Raises:
        InputError: A shape or dtype does not fit, or the reference's log-probabilities are missing.

    Example:
        >>> logprobs, advantages = torch.full((2, 3), -1.0), torch.tensor([1.0, -1.0])
        >>> mask = torch.tensor([[True, True, True], [True, False, False]])
        >>> policy_loss(logprobs, logprobs, advantages, mask, UpdateSize(2, 4, 1), Objective())[0]
        tensor(-0.5000)

    Source: PPO (arXiv 1707.06347), equation 7, with the two bounds of DAPO (arXiv 2503.14476); CISPO is that
    of MiniMax-M1 (arXiv 2506.13585). Divisors: GRPO (arXiv 2402.03300), Dr. GRPO (arXiv 2503.20783), DAPO;
    bnpo is TRL's. The bias correction of the divergence is that of DeepSeek-V3.2 (arXiv 2512.02556).
    """
    logprobs = {"logprobs_BL": logprobs_BL, "old_logprobs_BL": old_logprobs_BL}
    _check(objective, mask_BL, advantages_B, {**logprobs, "ref_logprobs_BL": ref_logprobs_BL})
    # What does not count may be anything, NaN included, and gets a gradient of zero.
    logprobs_BL = logprobs_BL.masked_fill(~mask_BL, 0.0)
    old_logprobs_BL = old_logprobs_BL.masked_fill(~mask_BL, 0.0)
    ratios = importance_ratios(logprobs_BL, old_logprobs_BL, mask_BL, objective.importance_sampling_level)
    losses = _token_losses(logprobs_BL, ratios, advantages_B, objective)
    metrics = _clipped(ratios.detach(), advantages_B, mask_BL, objective)
    if ref_logprobs_BL is not None and objective.beta:
        divergence_BL = k3_divergence(logprobs_BL, ref_logprobs_BL.masked_fill(~mask_BL, 0.0))
        if objective.use_bias_correction_kl:
            divergence_BL = divergence_BL * ratios
        losses = losses + objective.beta * divergence_BL
        metrics["kl"] = row_sums(divergence_BL.detach(), mask_BL)
    return _reduced(losses, mask_BL, size, objective), metrics


def row_sums(values: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Add up and count what counts of each completion: [B, L], or [B, 1] that counts once, → [B], [B]."""
    if values.shape[1] == 1:
        return values[:, 0], torch.ones_like(values[:, 0])
    return values.masked_fill(~mask_BL, 0.0).sum(dim=1), mask_BL.sum(dim=1).to(values.dtype)


def _clipped(ratios: Tensor, advantages_B: Tensor, mask_BL: Tensor, objective: Objective) -> RowSums:
    """Where the bounds hold the loss back."""
    advantages = advantages_B.unsqueeze(1)
    high = (ratios > objective.largest_ratio) & (advantages > 0)
    if objective.loss_type == "cispo":
        return {"cispo_clip_ratio": row_sums(high.float(), mask_BL)}
    low = (ratios < 1 - objective.epsilon) & (advantages < 0)
    named = {"clip_ratio/low": low, "clip_ratio/high": high, "clip_ratio/region": low | high}
    return {name: row_sums(clipped.float(), mask_BL) for name, clipped in named.items()}


def _check(
    objective: Objective, mask_BL: Tensor, advantages_B: Tensor, logprobs: dict[str, Tensor | None]
) -> None:
    require(mask_BL.ndim == 2 and mask_BL.dtype == torch.bool, "mask_BL", "[B, L], bool", mask_BL)
    for name, tensor in logprobs.items():
        if tensor is not None:
            fits = tensor.shape == mask_BL.shape and tensor.is_floating_point()
            require(fits, name, f"{list(mask_BL.shape)}, floating, as mask_BL is", tensor)
    fits = advantages_B.shape == mask_BL.shape[:1] and advantages_B.is_floating_point()
    require(fits, "advantages_B", f"{list(mask_BL.shape[:1])}, floating", advantages_B)
    if objective.beta and logprobs["ref_logprobs_BL"] is None:
        raise InputError("ref_logprobs_BL unless beta is 0", "None", "Pass them, or beta=0.")
