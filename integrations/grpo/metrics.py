"""What a step tells of itself: figures under TRL's names, and where its time went."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastreward.integrations.grpo.losses import RowSums
from fastreward.profiling import Timeline

Metrics = dict[str, float]


def completion_metrics(lengths: Tensor, truncated: Tensor) -> Metrics:
    """Lengths in tokens, [N], and the share that reached no end token; truncated is [N] of bool."""
    metrics = {"completions/clipped_ratio": float(truncated.float().mean())}
    for kind, chosen in (("", lengths.float()), ("terminated_", lengths[~truncated].float())):
        for name in ("mean", "min", "max"):
            metrics[f"completions/{name}_{kind}length"] = float(getattr(chosen, name)()) if len(chosen) else 0
    return metrics


def reward_metrics(names: Sequence[str], components: Tensor, total: Tensor) -> Metrics:
    """Mean and deviation of K rewards, [N, K], and their total, [N], of what has a value, if anything has."""
    columns = {f"rewards/{name}/": column for name, column in zip(names, components.T, strict=True)}
    metrics: Metrics = {}
    for name, values in (columns | {"reward": total}).items():
        known = values[~values.isnan()]
        if len(known):
            metrics[f"{name}mean" if name.endswith("/") else name] = float(known.mean())
            deviation = float(known.std()) if len(known) > 1 else 0.0
            metrics[f"{name}std" if name.endswith("/") else f"{name}_std"] = deviation
    return metrics


def loss_metrics(found: Sequence[RowSums]) -> Metrics:
    """Means over the tokens of all micro-batches, and for ratios how far single completions go."""
    metrics: Metrics = {}
    for name in found[0] if found else ():
        sums, counts = (torch.cat(values) for values in zip(*(part[name] for part in found), strict=True))
        is_ratio, of_rows = name.startswith("clip_ratio/"), sums / counts.clamp(min=1)
        metrics[f"{name}_mean" if is_ratio else name] = float(sums.sum() / counts.sum().clamp(min=1))
        if name == "clip_ratio/low":
            metrics["clip_ratio/low_min"] = float(of_rows.min())
        if name == "clip_ratio/high":
            metrics["clip_ratio/high_max"] = float(of_rows.max())
    return metrics


def mean_by_name(parts: Sequence[Metrics]) -> Metrics:
    """Means over processes, each of those that have the name."""
    values = {name: [part[name] for part in parts if name in part] for part in parts for name in part}
    return {name: sum(known) / len(known) for name, known in values.items()}


def time_metrics(timeline: Timeline) -> Metrics:
    """Seconds of the step that ended last, by the timeline: each phase, and the reward exposed and hidden."""
    step = timeline.latest_step()
    if step is None:
        return {}  # it failed, and has said so: a timeline stops no training
    seconds = dict.fromkeys(("generate", "logprobs", "update"), 0.0) | dict(step.phases)
    seconds |= {"reward_exposed": step.reward_exposed_s, "reward_hidden": step.reward_hidden_s}
    metrics = {f"time/{name.replace(' ', '_')}": spent for name, spent in seconds.items()}
    return {"step_time": step.wall_s} | metrics
