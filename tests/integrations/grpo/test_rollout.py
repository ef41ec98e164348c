"""Completions, their masks and their log-probabilities, with small random models."""

from __future__ import annotations

import copy
import math
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from fastreward.errors import InputError
from fastreward.integrations.generation import Sampling, Writer, end_tokens, generate
from fastreward.integrations.prompts import Prompts
from fastreward.integrations.rollouts import Rollout, completion_logprobs

TOLERANCE = 1e-6  # of log-probabilities, as a part of the largest logit: eight roundings (1.2e-7) in fp32
SAMPLING = Sampling(max_completion_length=12)


def read(tokenizer: Any, prompts: list[Any], longest: float = math.inf) -> Prompts:
    return Prompts.of([{"prompt": prompt} for prompt in prompts], tokenizer, longest)


def drawn(model: Any, tokenizer: Any, prompts: Prompts, **options: Any) -> list[list[int]]:
    options = {"count": 3, "seeds": range(3, 3 + len(prompts.ids)), "sampling": SAMPLING} | options
    ends = end_tokens(model, tokenizer)
    return generate(model, prompts.ids, ends=ends, pad=tokenizer.pad_token_id, **options)


def rolled_out(model: Any, tokenizer: Any, prompts: Prompts) -> Rollout:
    ids = drawn(model, tokenizer, prompts)
    return Rollout.of(prompts, ids, tokenizer, end_tokens(model, tokenizer), "cpu")


@pytest.fixture(scope="module")
def model(run: ModuleType, tokenizer: Any) -> Any:
    """A random policy for which an eighth of the words end a completion, so that some end and some do not."""
    model = run.make_model(tokenizer)
    model.generation_config.eos_token_id = list(range(10, 10 + len(tokenizer) // 8))
    return model.eval()


@pytest.fixture(scope="module")
def gpt2(tokenizer: Any) -> Any:
    """A model with absolute positions, which padding on the left must not move."""
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": len(tokenizer)}
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.eos_token_id}
    return GPT2LMHeadModel(GPT2Config(**sizes, **ends, initializer_range=0.3)).eval()


@pytest.fixture(scope="module")
def batch(model: Any, tokenizer: Any, run: ModuleType) -> Rollout:
    prompts = [run.ITEMS[0]["question"], "heart", run.ITEMS[1]["question"]]
    return rolled_out(model, tokenizer, read(tokenizer, prompts))


def test_a_completion_reaches_to_its_first_end_token_and_no_further(
    batch: Rollout, tokenizer: Any, model: Any
) -> None:
    ends = {tokenizer.eos_token_id, *model.generation_config.eos_token_id}
    length = batch.mask.shape[1]
    completions = batch.input_ids[:, -length:].tolist()
    for row, tokens in enumerate(completions):
        end = next((place + 1 for place, token in enumerate(tokens) if token in ends), length)
        assert batch.mask[row].tolist() == [True] * end + [False] * (length - end)
        assert bool(batch.truncated[row]) == (not ends & set(tokens))
        assert batch.completion_ids[row] == tokens[:end]
        assert batch.texts[row] == tokenizer.decode(tokens[:end], skip_special_tokens=True)


def test_some_rows_end_and_some_are_truncated(batch: Rollout) -> None:
    assert 0 < int(batch.truncated.sum()) < len(batch.truncated)


def test_the_completions_of_a_prompt_stand_together_after_its_tokens(
    batch: Rollout, tokenizer: Any, run: ModuleType
) -> None:
    prompts = [run.ITEMS[0]["question"], "heart", run.ITEMS[1]["question"]]
    width = batch.input_ids.shape[1] - batch.mask.shape[1]
    for row in range(9):
        ids = batch.input_ids[row, :width][batch.attention_mask[row, :width].bool()].tolist()
        assert ids == tokenizer(prompts[row // 3])["input_ids"]
    assert batch.attention_mask[:, width:].bool().equal(batch.mask)


def test_rows_are_the_same_rows_without_the_common_padding(batch: Rollout) -> None:
    index = torch.tensor([4, 3])
    part = batch.rows(index)
    assert part.input_ids.shape[1] < batch.input_ids.shape[1]
    assert part.attention_mask.any(dim=0).all()
    for row, source in enumerate(index.tolist()):
        used = part.attention_mask[row].bool()
        assert part.input_ids[row][used].equal(batch.input_ids[source][batch.attention_mask[source].bool()])
        assert part.mask[row].sum() == batch.mask[source].sum()
        assert part.texts[row] == batch.texts[source]
        assert part.completion_ids[row] == batch.completion_ids[source]


@pytest.mark.parametrize("name", ["model", "gpt2"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probabilities_are_those_of_each_row_by_itself_in_fp64(
    name: str, temperature: float, batch: Rollout, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(name)
    length = batch.mask.shape[1]
    with torch.no_grad():
        found, entropies = completion_logprobs(
            model, batch.input_ids, batch.attention_mask, length, temperature
        )
    errors, scales = [], []
    for row in range(len(found)):
        ids = batch.input_ids[row][batch.attention_mask[row].bool()][None]
        with torch.no_grad():
            logits = model.double()(input_ids=ids).logits[0, :-1] / temperature
            model.float()
        scales.append(logits.abs().max())
        distribution = logits.log_softmax(-1)
        count = int(batch.mask[row].sum())
        chosen = distribution.gather(-1, ids[0, 1:, None])[-count:, 0]
        entropy = -(distribution.exp() * distribution).sum(-1)[-count:]
        errors += [found[row, :count] - chosen, entropies[row, :count] - entropy]
    difference = torch.cat(errors) / max(max(scales), distribution.abs().max())
    assert difference.abs().max() <= TOLERANCE
    assert difference.square().mean().sqrt() <= TOLERANCE / 4


def test_a_temperature_draws_from_the_distribution_it_names(gpt2: Any, tokenizer: Any) -> None:
    prompts = read(tokenizer, ["the heart pumps"])
    sampling = Sampling(max_completion_length=1, temperature=0.5)
    ids = torch.tensor(drawn(gpt2, tokenizer, prompts, sampling=sampling, count=4000))[:, 0]
    with torch.no_grad():
        expected = (gpt2(torch.tensor(prompts.ids)).logits[0, -1] / 0.5).softmax(-1)
    counts = torch.bincount(ids, minlength=len(expected))
    likely = expected.topk(5).indices
    spread = (expected[likely] * (1 - expected[likely]) / 4000).sqrt()
    assert ((counts[likely] / 4000 - expected[likely]).abs() < 5 * spread).all()


def test_only_the_likely_tokens_are_drawn_where_that_is_asked_for(gpt2: Any, tokenizer: Any) -> None:
    prompts = read(tokenizer, ["the heart pumps"])
    with torch.no_grad():
        odds = gpt2(torch.tensor(prompts.ids)).logits[0, -1].softmax(-1).sort(descending=True)
    nucleus = int((odds.values.cumsum(0) < 0.2).sum()) + 1
    for limit, likely in (({"top_k": 3}, 3), ({"top_p": 0.2}, nucleus)):
        sampling = Sampling(max_completion_length=1, **limit)  # type: ignore[arg-type]
        ids = [row[0] for row in drawn(gpt2, tokenizer, prompts, sampling=sampling, count=500)]
        assert 1 < len(set(ids)) <= likely
        assert set(ids) <= set(odds.indices[:likely].tolist())


def test_what_a_prompt_gets_does_not_depend_on_the_prompts_beside_it(
    model: Any, tokenizer: Any, run: ModuleType
) -> None:
    prompts = read(tokenizer, [run.ITEMS[0]["question"], "heart", run.ITEMS[1]["question"]])
    together = drawn(model, tokenizer, prompts)
    torch.rand(3)  # PyTorch's own random numbers have no part in it
    alone = [drawn(model, tokenizer, prompts.chosen([row]), seeds=[3 + row]) for row in range(3)]
    assert together == [ids for part in alone for ids in part]
    assert together != drawn(model, tokenizer, prompts, seeds=range(4, 7))
    assert len(set(map(tuple, together))) == 9


def test_the_models_own_penalties_do_not_change_what_is_drawn(gpt2: Any, tokenizer: Any) -> None:
    prompts = read(tokenizer, ["the heart pumps"])
    plain = drawn(gpt2, tokenizer, prompts)
    gpt2.generation_config.update(repetition_penalty=5.0, temperature=0.1, top_k=1, no_repeat_ngram_size=1)
    try:
        assert drawn(gpt2, tokenizer, prompts) == plain
    finally:
        gpt2.generation_config.update(
            repetition_penalty=1.0, temperature=1.0, top_k=50, no_repeat_ngram_size=0
        )


def test_completions_are_told_as_they_end_each_once_and_whole(
    model: Any, tokenizer: Any, run: ModuleType
) -> None:
    told: list[dict[int, list[int]]] = []
    prompts = read(tokenizer, [run.ITEMS[0]["question"], "heart", run.ITEMS[1]["question"]])
    ids = drawn(model, tokenizer, prompts, ended=told.append)
    rows = [row for piece in told for row in piece]
    assert len(rows) == len(set(rows)) >= 3
    assert all(piece[row] == ids[row] for piece in told for row in piece)
    lengths = [len(next(iter(piece.values()))) for piece in told]
    assert lengths == sorted(set(lengths))


def test_conversations_get_the_chat_template_and_answers_become_messages(model: Any, tokenizer: Any) -> None:
    prompts = read(tokenizer, [[{"role": "user", "content": "the heart pumps"}]])
    assert prompts.ids == [tokenizer("user : the heart pumps ")["input_ids"]]
    answers = rolled_out(model, tokenizer, prompts).texts
    assert all(len(answer) == 1 and answer[0]["role"] == "assistant" for answer in answers)


def test_a_tokenizer_without_a_template_is_refused_for_conversations(tokenizer: Any) -> None:
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    with pytest.raises(InputError, match="a tokenizer with a chat template"):
        read(plain, [[{"role": "user", "content": "the heart pumps"}]])


def test_the_models_own_end_tokens_count_too(model: Any, tokenizer: Any) -> None:
    ends = end_tokens(model, tokenizer)
    assert set(ends) == {tokenizer.eos_token_id, *model.generation_config.eos_token_id}
    assert len(ends) == len(set(ends)) > 100


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        (["fine", ""], "the prompt of row 1"),
        (["fine", [{"role": "user", "content": "x"}]], "a text, as the prompt of row 1"),
        (
            [[{"role": "user", "content": "x"}], "text"],
            "a conversation, as the first, as the prompt of row 1",
        ),
        (["a b", "a b c d e f"], "1 to 4 tokens as the prompt of row 1, .*, got 6"),
    ],
    ids=["empty", "conversation", "text", "long"],
)
def test_a_prompt_that_cannot_be_used_is_named(tokenizer: Any, prompts: list[Any], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        read(tokenizer, prompts, longest=4)


@pytest.mark.parametrize("missing", ["pad_token", "eos_token"])
def test_a_tokenizer_without_a_needed_token_is_refused(model: Any, run: ModuleType, missing: str) -> None:
    tokenizer = run.make_tokenizer()
    setattr(tokenizer, missing, None)
    before, model.generation_config.eos_token_id = model.generation_config.eos_token_id, None
    try:
        with pytest.raises(InputError, match=f"{missing} of the tokenizer, got none"):
            end_tokens(model, tokenizer)
    finally:
        model.generation_config.eos_token_id = before


def test_a_copy_writes_with_the_weights_that_it_last_followed(gpt2: Any, tokenizer: Any) -> None:
    prompts = read(tokenizer, ["the heart pumps"])
    writer = Writer(gpt2, tokenizer, SAMPLING, has_copy=True)
    trained = copy.deepcopy(gpt2)
    with torch.no_grad():
        for weight in trained.parameters():
            weight.mul_(1.5)
    before, after = (drawn(model, tokenizer, prompts, seeds=[7]) for model in (gpt2, trained))
    assert before != after
    assert writer.write(prompts.ids, 3, [7]) == before
    assert writer.at(trained).write(prompts.ids, 3, [7]) == after
    assert writer.write(prompts.ids, 3, [7]) == before
    writer.follow(trained)
    assert writer.write(prompts.ids, 3, [7]) == after


def test_an_engine_gets_the_policys_weights_and_writes_in_its_place(gpt2: Any, tokenizer: Any) -> None:
    class Engine:
        weights = 0.0

        def load(self, model: Any) -> None:
            self.weights = float(next(model.parameters()).detach().sum())

        def generate(self, prompt_ids: Any, sampling: Sampling, **options: Any) -> list[list[int]]:
            return [
                [int(seed), *options["ends"]] for seed in options["seeds"] for _ in range(options["count"])
            ]

    engine = Engine()
    writer = Writer(gpt2, tokenizer, SAMPLING, engine=engine)
    writer.follow(gpt2)
    assert engine.weights == float(next(gpt2.parameters()).detach().sum())
    end = tokenizer.eos_token_id
    assert writer.write([[5], [6]], 2, [7, 8]) == [[7, end], [7, end], [8, end], [8, end]]


def test_vllm_gets_the_weights_of_an_adapter_merged_under_the_checkpoints_names(model: Any) -> None:
    peft = pytest.importorskip("peft", reason="needs the extra trl")
    from fastreward.integrations.grpo.vllm import _plain_weights

    plain = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    assert [name for name, _ in _plain_weights(model)] == list(plain)
    options = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", "init_lora_weights": False}
    adapted = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(**options))
    merged = {name: weight.detach().clone() for name, weight in _plain_weights(adapted)}
    expected = copy.deepcopy(adapted).merge_and_unload().state_dict()
    assert merged.keys() == plain.keys()
    for name, weight in merged.items():
        assert (weight - expected[name]).abs().max() < 1e-6
        assert weight.equal(plain[name]) == ("q_proj.weight" not in name)
    assert not any(module.merged for module in adapted.modules() if hasattr(module, "lora_A"))
