"""The losses against TRL's own trainer on the same batch, and against their formulas written out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastreward.errors import InputError
from fastreward.integrations.grpo.config import Objective
from fastreward.integrations.grpo.losses import (
    UpdateSize,
    importance_ratios,
    k3_divergence,
    policy_loss,
    row_sums,
)
from fastreward.integrations.rollouts import completion_logprobs

TYPES = ["grpo", "bnpo", "dr_grpo", "dapo", "cispo"]
ROWS, PROMPT, LENGTH = 6, 5, 9
MICRO_BATCHES = 3
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def oracle(run: ModuleType, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Make TRL's trainer for an objective."""
    pytest.importorskip("trl", reason="needs the extra trl")
    from trl import GRPOConfig, GRPOTrainer

    policy = str(tmp_path_factory.mktemp("policy"))  # TRL loads its reference model from where the policy was
    run.make_model(tokenizer).save_pretrained(policy)

    def trainer(objective: Objective, temperature: float = 1.0) -> Any:
        names = ("loss_type", "epsilon", "epsilon_high", "beta", "importance_sampling_level")
        folder: Path = tmp_path_factory.mktemp("trl")
        options = run.group_settings(folder, max_completion_length=objective.max_completion_length)
        made = GRPOTrainer(
            policy,
            reward_funcs=[run.tags_reward],
            args=GRPOConfig(
                **options,
                **{name: getattr(objective, name) for name in names},
                use_bias_correction_kl=objective.use_bias_correction_kl,
                temperature=temperature,
                gradient_accumulation_steps=MICRO_BATCHES,
            ),
            train_dataset=run.make_dataset(),
            processing_class=tokenizer,
        )
        made.model.train()
        made.current_gradient_accumulation_steps = MICRO_BATCHES  # the base class sets it while it trains
        return made

    return trainer


def make_batch(vocab_size: int, *, seed: int = 0) -> dict[str, Tensor]:
    """Padded prompts and completions, one of no token, and log-probabilities of two other policies."""
    generator = torch.Generator().manual_seed(seed)
    prompt_lengths, lengths = [5, 3, 1, 5, 2, 4], [9, 4, 0, 1, 9, 7]
    columns = torch.arange(PROMPT), torch.arange(LENGTH)
    # Ratios from about 1/3 to 3, so that every bound is met.
    other = [0.6 * torch.randn(ROWS, LENGTH, generator=generator) for _ in range(2)]
    return {
        "prompt_ids": torch.randint(3, vocab_size, (ROWS, PROMPT), generator=generator),
        "prompt_mask": (columns[0] >= PROMPT - torch.tensor(prompt_lengths)[:, None]).long(),
        "completion_ids": torch.randint(3, vocab_size, (ROWS, LENGTH), generator=generator),
        "completion_mask": (columns[1] < torch.tensor(lengths)[:, None]).long(),
        "advantages": torch.tensor([1.5, -0.7, 1.0, -2.0, 0.0, 0.4]),
        "num_items_in_batch": torch.tensor(71),  # of three micro-batches, this one's 30 tokens included
        "old_per_token_logps": other[0] - 5.5,
        "ref_per_token_logps": other[1] - 5.5,
    }


def our_loss(
    model: Any, batch: dict[str, Tensor], objective: Objective, temperature: float = 1.0
) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
    logprobs, _ = completion_logprobs(
        model,
        torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
        torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
        LENGTH,
        temperature,
    )
    return policy_loss(
        logprobs,
        batch.get("old_per_token_logps", logprobs.detach()),
        batch["advantages"],
        batch["completion_mask"].bool(),
        UpdateSize(ROWS * MICRO_BATCHES, int(batch["num_items_in_batch"]), MICRO_BATCHES),
        objective,
        batch["ref_per_token_logps"] if objective.beta else None,
    )


def gradients(model: Any, loss: Tensor) -> Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def objective_of(loss_type: str, **options: Any) -> Objective:
    high = {"epsilon_high": 2.0} if loss_type == "cispo" else {}
    return Objective(loss_type=loss_type, max_completion_length=16, **(high | options))


# --------------------------------------------------------------------------- against TRL


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("loss_type", TYPES)
def test_loss_gradient_and_metrics_equal_those_of_trl(
    oracle: Callable[..., Any], tokenizer: Any, loss_type: str, beta: float, level: str
) -> None:
    objective = objective_of(loss_type, beta=beta, importance_sampling_level=level)
    same_as_trl(oracle(objective), make_batch(len(tokenizer)), objective)


@pytest.mark.parametrize(
    "options",
    [
        {"loss_type": "dapo", "epsilon": 0.1, "epsilon_high": 0.4},
        {"loss_type": "grpo", "epsilon": 0.1, "epsilon_high": 0.4, "importance_sampling_level": "sequence"},
        {"loss_type": "dapo", "beta": 0.1, "use_bias_correction_kl": False},
        {"loss_type": "bnpo", "beta": 0.1, "temperature": 0.7},
        {"loss_type": "cispo", "epsilon_high": 1.1, "first_pass": True},
        {"loss_type": "dr_grpo", "first_pass": True},
    ],
    ids=str,
)
def test_they_equal_trl_with_other_options_too(
    oracle: Callable[..., Any], tokenizer: Any, options: dict[str, Any]
) -> None:
    options = dict(options)
    temperature, first_pass = options.pop("temperature", 1.0), options.pop("first_pass", False)
    objective = objective_of(**options)
    batch = make_batch(len(tokenizer), seed=1)
    if first_pass:
        del batch["old_per_token_logps"]
    same_as_trl(oracle(objective, temperature), batch, objective, temperature)


def same_as_trl(
    trainer: Any, batch: dict[str, Tensor], objective: Objective, temperature: float = 1.0
) -> None:
    expected = trainer._compute_loss(trainer.model, batch)
    expected_gradients = gradients(trainer.model, expected)
    loss, metrics = our_loss(trainer.model, batch, objective, temperature)
    found_gradients = gradients(trainer.model, loss)

    assert abs(loss.item() - expected.item()) <= TOLERANCE
    largest = expected_gradients.abs().max()
    assert largest > 1e-4
    # fp32 sums in another order: some roundings (1.2e-7) of the largest gradient, far less for most.
    difference = (found_gradients - expected_gradients).double() / largest
    assert difference.abs().max() <= TOLERANCE
    assert difference.square().mean().sqrt() <= TOLERANCE / 100

    theirs = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    for name, (sums, counts) in metrics.items():
        key = name if name in theirs else f"{name}_mean"
        assert float(sums.sum() / counts.sum()) == pytest.approx(theirs[key], abs=2e-6)
    if "clip_ratio/low" in metrics:
        assert theirs["clip_ratio/region_mean"] > 0 or "old_per_token_logps" not in batch


# --------------------------------------------------------------------------- against the formulas


def test_the_divergence_is_never_negative_and_zero_for_the_same_policy() -> None:
    logprobs = torch.randn(3, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    other = logprobs + 0.3 * torch.randn(3, 50, dtype=torch.float64)
    assert (k3_divergence(logprobs, other) >= 0).all()
    assert (k3_divergence(logprobs, logprobs) == 0).all()


def test_the_divergence_of_samples_approaches_the_true_one() -> None:
    generator = torch.Generator().manual_seed(0)
    policy = torch.randn(8, dtype=torch.float64, generator=generator).log_softmax(0)
    reference = torch.randn(8, dtype=torch.float64, generator=generator).log_softmax(0)
    estimates = k3_divergence(policy[None], reference[None])[0]
    true = (policy.exp() * (policy - reference)).sum()
    assert float((policy.exp() * estimates).sum()) == pytest.approx(float(true), abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(TYPES), st.integers(0, 10_000), st.sampled_from(["token", "sequence"]))
def test_a_loss_is_the_sum_written_out_in_python(loss_type: str, seed: int, level: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    objective = objective_of(loss_type, beta=0.05, importance_sampling_level=level)
    new, old, ref = (-3 * torch.rand(3, 4, dtype=torch.float64, generator=generator) for _ in range(3))
    mask = torch.rand(3, 4, generator=generator) < 0.6
    advantages = torch.randn(3, dtype=torch.float64, generator=generator)
    size = UpdateSize(completions=12, tokens=31, micro_batches=4)
    loss, _ = policy_loss(new, old, advantages, mask, size, objective, ref)
    assert loss.item() == pytest.approx(written_out(new, old, ref, advantages, mask, size, objective))


def written_out(
    new: Tensor, old: Tensor, ref: Tensor, advantages: Tensor, mask: Tensor, size: UpdateSize, o: Objective
) -> float:
    total = 0.0
    for b, advantage in enumerate(advantages.tolist()):
        counted = [t for t in range(mask.shape[1]) if mask[b, t]]
        log_ratios = {t: float(new[b, t] - old[b, t]) for t in counted}
        for t in counted:
            shared = sum(log_ratios.values()) / len(counted)
            ratio = math.exp(log_ratios[t] if o.importance_sampling_level == "token" else shared)
            if o.loss_type == "cispo":
                loss = -min(ratio, 2.0) * advantage * float(new[b, t])
            else:
                loss = -min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
            d = float(ref[b, t] - new[b, t])
            loss += o.beta * ratio * (math.exp(d) - d - 1)
            total += loss / {
                "grpo": len(counted) * size.completions,
                "bnpo": int(mask.sum()) * size.micro_batches,
                "dr_grpo": size.completions * 16,
            }.get(o.loss_type, size.tokens)
    return total


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo", "cispo"])
def test_the_losses_of_unequal_micro_batches_add_up_to_that_of_the_whole(loss_type: str) -> None:
    generator = torch.Generator().manual_seed(0)
    new, old = (-torch.rand(7, 5, dtype=torch.float64, generator=generator) for _ in range(2))
    mask = torch.rand(7, 5, generator=generator) < 0.7
    advantages = torch.randn(7, dtype=torch.float64, generator=generator)
    objective = objective_of(loss_type)

    def loss(rows: slice, parts: int) -> Tensor:
        size = UpdateSize(7, int(mask.sum()), parts)
        return policy_loss(new[rows], old[rows], advantages[rows], mask[rows], size, objective)[0]

    whole = loss(slice(0, 7), 1)
    parts = sum(loss(rows, 3) for rows in (slice(0, 1), slice(1, 5), slice(5, 7)))
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-14)


@pytest.mark.parametrize("loss_type", TYPES)
def test_what_does_not_count_may_be_anything_and_gets_no_gradient(loss_type: str) -> None:
    new = torch.tensor([[-1.0, math.nan, -2.0], [-1.0, -1.0, -1.0]], requires_grad=True)
    mask = torch.tensor([[True, False, True], [False, False, False]])
    loss, _ = policy_loss(
        new, new.detach() - 0.1, torch.tensor([1.0, 5.0]), mask, UpdateSize(2, 2, 1), objective_of(loss_type)
    )
    loss.backward()
    assert math.isfinite(loss.item())
    assert new.grad is not None
    assert (new.grad[mask] != 0).all()
    assert (new.grad[~mask].nan_to_num(1.0) == 0).all()


def test_a_sequence_of_no_token_has_the_ratio_one() -> None:
    ratios = importance_ratios(torch.zeros(1, 2), torch.ones(1, 2), torch.zeros(1, 2).bool(), "sequence")
    assert ratios.tolist() == [[1.0]]


def test_row_sums_count_a_completion_once_where_it_has_one_value() -> None:
    sums, counts = row_sums(torch.tensor([[2.0], [3.0]]), torch.ones(2, 4).bool())
    assert (sums.tolist(), counts.tolist()) == ([2.0, 3.0], [1.0, 1.0])


# --------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"loss_type": "ppo"}, "loss_type as 'grpo' or 'bnpo' or .* or 'cispo', got 'ppo'"),
        ({"importance_sampling_level": "word"}, "importance_sampling_level as 'token' or 'sequence'"),
        ({"epsilon": 1.0}, "epsilon from 0 to 0.99999"),
        ({"epsilon_high": -0.1}, "epsilon_high of 0 or more"),
        ({"beta": math.nan}, "beta of 0 or more"),
        ({"loss_type": "cispo"}, "epsilon_high of 1 or more with 'cispo'"),
        ({"loss_type": "cispo", "epsilon_high": 0.2}, "largest ratio"),
        ({"max_completion_length": 0}, "max_completion_length of 1 or more"),
    ],
    ids=str,
)
def test_an_objective_out_of_range_is_refused(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        Objective(**options)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"logprobs_BL": torch.zeros(2, 3).long()}, "logprobs_BL"),
        ({"old_logprobs_BL": torch.zeros(2, 4)}, "old_logprobs_BL"),
        ({"mask_BL": torch.ones(2, 3)}, "mask_BL"),
        ({"advantages_B": torch.zeros(2, 1)}, "advantages_B"),
        ({"ref_logprobs_BL": torch.zeros(3)}, "ref_logprobs_BL"),
        ({"ref_logprobs_BL": None}, "ref_logprobs_BL unless beta is 0, got None"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_tensors_that_do_not_fit_are_named(change: dict[str, Any], expected: str) -> None:
    arguments = {
        "logprobs_BL": torch.zeros(2, 3),
        "old_logprobs_BL": torch.zeros(2, 3),
        "advantages_B": torch.zeros(2),
        "mask_BL": torch.ones(2, 3).bool(),
        "ref_logprobs_BL": torch.zeros(2, 3),
    }
    with pytest.raises(InputError, match=expected):
        policy_loss(**(arguments | change), size=UpdateSize(2, 6, 1), objective=Objective(beta=0.1))
