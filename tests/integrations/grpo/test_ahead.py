"""A rollout that is written while the one before it is trained on: one step off-policy."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastreward.integrations.generation import Sampling, end_tokens, generate, seed_of
from fastreward.integrations.grpo import GRPO
from fastreward.integrations.rollouts import Rollout

Make = Callable[..., GRPO]
OPTIONS: dict[str, Any] = {"off_policy_steps": 1, "learning_rate": 0.02, "max_steps": 4}


def odd_words(completions: list[str], **columns: Any) -> list[float]:
    return [sum(len(word) % 2 for word in text.split()) / 8 for text in completions]


def weights(model: Any) -> Tensor:
    return torch.cat([weight.detach().flatten() for weight in model.parameters()]).clone()


def logprobs_of(model: Any, prompt: list[int], ids: list[int]) -> Tensor:
    tokens = torch.tensor([prompt + ids])
    logprobs = model(tokens).logits[0, :-1].log_softmax(-1)
    return logprobs.gather(-1, tokens[0, 1:, None])[-len(ids) :, 0]  # type: ignore[no-any-return]


def delayed(model: Any, tokenizer: Any, rows: list[dict[str, Any]], config: Any) -> list[list[list[int]]]:
    """The schedule written out row by row: train on what the weights of the step before have written."""
    ends = end_tokens(model, tokenizer)
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in rows]
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.0)

    def written(step: int) -> tuple[list[list[int]], list[list[int]], Any]:
        mine = [prompts[(3 * step + place) % len(prompts)] for place in range(3)]
        seeds = [seed_of("draw", config.seed, step, place) for place in range(3)]
        options: dict[str, Any] = {"count": 4, "seeds": seeds, "ends": ends, "pad": tokenizer.pad_token_id}
        ids = generate(model, mine, Sampling(max_completion_length=8), **options)
        return [prompt for prompt in mine for _ in range(4)], ids, copy.deepcopy(model)

    seen = []
    now = written(0)
    for step in range(config.max_steps):
        then = written(step + 1)  # before the update
        before, ids, writer = now
        seen.append(ids)
        rewards = torch.tensor(odd_words(tokenizer.batch_decode(ids, skip_special_tokens=True))).view(-1, 4)
        centred = rewards - rewards.mean(1, keepdim=True)
        advantages = (centred / (rewards.std(1, keepdim=True) + 1e-4)).flatten()
        losses = []
        for prompt, completion, a in zip(before, ids, advantages, strict=True):
            with torch.no_grad():
                old = logprobs_of(writer, prompt, completion)
            ratio = torch.exp(logprobs_of(model, prompt, completion) - old)
            losses.append(-torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a))
        torch.cat(losses).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        now = then
    return seen


def test_the_weights_are_those_of_the_delayed_schedule_written_out(make: Make, tokenizer: Any) -> None:
    seen: list[list[list[int]]] = []

    def recorded(completions: list[str], **columns: Any) -> list[float]:
        seen.append(columns["completion_ids"])
        return odd_words(completions)

    trainer = make(recorded, **OPTIONS, shuffle=False)
    by_hand = copy.deepcopy(trainer.model)
    before = weights(by_hand)
    expected = delayed(by_hand, tokenizer, trainer._data.rows, trainer.config)
    trainer.train()
    assert seen == expected
    found, wanted = weights(trainer.model) - before, weights(by_hand) - before
    # AdamW divides by the gradient's size, so that a weight whose gradient is rounding may go either way.
    assert (found - wanted).square().mean().sqrt() < 0.01 * wanted.square().mean().sqrt()


def test_it_is_another_schedule_than_the_one_on_policy(make: Make) -> None:
    ahead, plain = make(**OPTIONS), make(**(OPTIONS | {"off_policy_steps": 0}))
    logs = [[trainer.step(number) for number in range(3)] for trainer in (ahead, plain)]
    assert logs[0][0]["reward"] == logs[1][0]["reward"]
    assert not weights(ahead.model).equal(weights(plain.model))
    # On-policy no ratio differs from 1; one step off-policy some go beyond their bounds.
    assert all(metrics["clip_ratio/region_mean"] == 0 for metrics in logs[1])
    assert logs[0][1]["clip_ratio/region_mean"] > 0


def test_the_next_rollout_is_written_while_this_one_is_trained_on(make: Make) -> None:
    trained, written = threading.Event(), threading.Event()
    trainer = make(**OPTIONS)
    trainer.step(0)  # its writing ahead is waited for by the next step
    trainer._ahead[1].result()

    def holds(module: Any, arguments: Any, options: Any) -> None:
        assert trained.wait(60), "the update came after the rollout"
        written.set()

    trainer._writer.model.register_forward_pre_hook(holds, with_kwargs=True)
    trainer.model.register_forward_pre_hook(lambda *_, **__: trained.set(), with_kwargs=True)
    metrics = trainer.step(1)
    trainer._ahead[2].result()
    assert written.is_set()
    assert {"time/generate_wait", "time/generate", "time/update"} <= metrics.keys()


def test_the_last_step_writes_nothing_ahead_and_a_run_is_the_same_twice(make: Make) -> None:
    first, second = make(**OPTIONS), make(**OPTIONS)
    for trainer in (first, second):
        trainer.train()
        assert trainer._ahead == {}
    assert weights(first.model).equal(weights(second.model))


@pytest.mark.parametrize("options", [{}, {"lora_rank": 2}], ids=str)
def test_a_resumed_run_takes_up_what_was_written_ahead(
    make: Make, options: dict[str, Any], tmp_path: Path
) -> None:
    if options:
        pytest.importorskip("peft", reason="needs the extra trl")
    options = OPTIONS | options | {"save_steps": 2}
    whole = make(**options)
    whole.train()

    def dies(metrics: Any) -> None:
        if metrics["step"] == 3:
            raise KeyboardInterrupt

    broken = make(**options, output_dir=str(tmp_path / "killed"))
    broken._report = dies
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    resumed = make(**options, output_dir=str(tmp_path / "killed"))
    resumed.train(resume=True)
    assert weights(resumed.model).equal(weights(whole.model))


def test_old_log_probabilities_go_with_their_rows() -> None:
    old = torch.arange(12.0).view(3, 4)
    ids = torch.ones(3, 6, dtype=torch.int64)
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
    real = torch.cat([ids[:, :2], mask], dim=1)
    batch = Rollout(ids, real, mask.bool(), torch.zeros(3, dtype=torch.bool), ["a"] * 3, [[1]] * 3, old)
    part = batch.rows(torch.tensor([1, 0]))
    assert part.old_logprobs is not None
    assert part.old_logprobs.tolist() == [[4, 5], [0, 1]]
