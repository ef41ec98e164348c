"""What a step tells of itself: where its time went, and figures under TRL's names."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from fastreward.integrations.grpo.losses import RowSums
from fastreward.integrations.grpo.rollout import Rollout

Metrics = dict[str, float]
PHASES: Final = ("generate", "reward_exposed", "reward_hidden", "logprobs", "update")


class Clock:
    """Marks where phases end: on CUDA where the work queued until then has ended, without waiting for it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[tuple[float, Any]] = []

    def mark(self) -> None:
        """End a phase; the first mark begins the step."""
        event: Any = None
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(self._device))
        self._marks.append((time.perf_counter(), event))

    def phases(self, reward_s: float) -> Metrics:
        """Return the seconds of a step that is over, its last work waited for; the reward took `reward_s`."""
        begin, first = self._marks[0]
        ends = [max(s - begin, first.elapsed_time(event) / 1e3 if first else 0.0) for s, event in self._marks]
        generated, waited, referred, forwarded, scored, updated = ends[1:]
        exposed = waited - generated + scored - forwarded
        update = forwarded - referred + updated - scored
        seconds = (generated, exposed, max(reward_s - exposed, 0.0), referred - waited, update)
        return {"step_time": updated} | {f"time/{n}": s for n, s in zip(PHASES, seconds, strict=True)}


def completion_metrics(batches: Sequence[Rollout]) -> Metrics:
    """Lengths in tokens, and the share that reached no end token."""
    lengths = torch.tensor([len(ids) for batch in batches for ids in batch.completion_ids]).float()
    truncated = torch.cat([batch.truncated for batch in batches]).cpu()
    metrics = {"completions/clipped_ratio": float(truncated.float().mean())}
    for kind, chosen in (("", lengths), ("terminated_", lengths[~truncated])):
        for name in ("mean", "min", "max"):
            metrics[f"completions/{name}_{kind}length"] = (
                float(getattr(chosen, name)()) if len(chosen) else 0.0
            )
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


def print_metrics(metrics: Mapping[str, float]) -> None:
    """Print a step's metrics on standard output, first where its time went."""
    from rich.console import Console

    shown = dict(metrics)
    seconds = ", ".join(f"{name.replace('_', ' ')} {shown.pop(f'time/{name}'):.3f}" for name in PHASES)
    text = f"step {shown.pop('step'):.0f}: {shown.pop('step_time'):.3f} s ({seconds})\n  "
    text += "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
    Console(soft_wrap=True).print(text, markup=False, highlight=False)
