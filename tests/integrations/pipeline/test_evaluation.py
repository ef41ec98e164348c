"""What an evaluation measures, against scores computed by hand from what the model wrote."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from fastreward.encoders.checkpoint import DEFAULT_ENCODER, is_packaged
from fastreward.errors import InputError
from fastreward.integrations.pipeline import TuningConfig, evaluate, finetune
from fastreward.integrations.pipeline.prompts import as_chat
from fastreward.scorer import Scorer

pytest.importorskip("trl", reason="needs the extra trl")
pytestmark = pytest.mark.skipif(
    not is_packaged(DEFAULT_ENCODER), reason="the default encoder is not installed (fastreward[minilm])"
)

TAGGED = re.compile(r"<explanation>(.*)</explanation>", re.DOTALL)


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer(device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def rows(run: ModuleType) -> list[dict[str, Any]]:
    """Four questions: the third's completion gives the wrong answer, the last's has no explanation."""
    rows = []
    for number, item in enumerate(run.ITEMS[:4]):
        explanation = " ".join(item["explanation"].split()[:10])
        explained = f"<explanation>{explanation}</explanation>" if number < 3 else "No idea."
        answer = "The answer is A."  # the tokenizer has no tags for answers
        row = {"prompt": item["question"], "completion": f"{explained} {answer}"}
        rows.append(row | {"answer": "AABA"[number], "explanation": explanation})
    return rows


@pytest.fixture(scope="module")
def taught(
    run: ModuleType, rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Any]:
    """A model that knows the completions by heart."""
    tokenizer = run.make_tokenizer()
    words = ["The", "answer", "is", "A", ".", "No", "idea"]
    assert all(tokenizer.convert_tokens_to_ids(word) is not None for word in words)
    tokenizer.add_tokens([word for word in words if word not in tokenizer.get_vocab()])
    model = run.make_model(tokenizer)
    folder = tmp_path_factory.mktemp("taught") / "sft"
    settings: dict[str, Any] = {"max_steps": 40, "batch_size": 4, "save_steps": 0, "logging_steps": 40}
    finetune(model, tokenizer, rows, TuningConfig(output_dir=str(folder), learning_rate=2e-2, **settings))
    return model, tokenizer


def test_the_figures_are_those_of_the_completions(
    taught: tuple[Any, Any], rows: list[dict[str, Any]], scorer: Scorer
) -> None:
    model, tokenizer = taught
    result = evaluate(model, tokenizer, rows, scorer=scorer, max_completion_length=40)
    for text, row in zip(result.completions, rows, strict=True):
        wanted = tokenizer.decode(tokenizer(row["completion"])["input_ids"], skip_special_tokens=True)
        assert text == wanted  # it was learned by heart
    found = [TAGGED.search(text) for text in result.completions]
    assert [match is None for match in found] == [False, False, False, True]
    cosines = [
        scorer.score([match[1].strip()], [row["explanation"]]).item() if match else 0.0
        for match, row in zip(found, rows, strict=True)
    ]
    assert result.cosines == pytest.approx(cosines, abs=2e-6)
    assert result.semantic == pytest.approx(sum(cosines) / 4, abs=2e-6)
    assert min(cosines[:3]) > 0.9
    assert result.correct == (True, True, False, True)
    assert result.accuracy == 0.75
    assert result.format_rate == 0.0  # there are no tags around the answers
    lengths = [len(tokenizer(row["completion"])["input_ids"]) + 1 for row in rows]
    assert result.lengths == tuple(lengths)
    assert result.mean_length == sum(lengths) / 4
    assert result.truncated == 0.0
    assert result.encoder == DEFAULT_ENCODER
    assert result.explanations[3] is None
    assert [row["correct"] for row in result.rows()] == list(result.correct)
    assert result.summary()["rows"] == 4


def test_with_options_an_answer_is_one_of_them_and_a_letter_is_its_words(
    taught: tuple[Any, Any], rows: list[dict[str, Any]], scorer: Scorer
) -> None:
    lists = ["the heart", "the lung"], {"A": "the heart", "B": "the lung"}
    asked = [
        row | {"answer": f"the {word}", "choices": lists[number % 2]}
        for number, (row, word) in enumerate(zip(rows, ["heart", "heart", "lung", "heart"], strict=True))
    ]
    settings: dict[str, Any] = {"scorer": scorer, "max_completion_length": 40}
    result = evaluate(*taught, asked, options="choices", **settings)
    assert all("answer is A" in text for text in result.completions)
    assert result.correct == (True, True, False, True)
    assert result.accuracy == 0.75
    assert evaluate(*taught, asked, **settings).accuracy == 0.0


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"choices": []}, "choices", "options: a list that is not empty, .* in row 1, column 'choices'"),
        ({"choices": "heart"}, "choices", "in row 1, column 'choices', got str 'heart'"),
        ({"choices": [1, None]}, "choices", r"a list of options, .* in choices\[1\]"),
        ({"answer": "gills"}, "choices", r"in answer\[1\]"),
        ({}, "options", "a column 'options' in row 0"),
        ({}, "answer", "as options, not one of prompt, answer, .*, got str 'answer'"),
        ({}, "completions", "not one of .*, got str 'completions'"),
        ({}, 1, "the name of a column as options"),
    ],
)
def test_wrong_options_are_named_before_a_model_is_asked(
    change: dict[str, Any], options: Any, message: str
) -> None:
    row = {"prompt": "the cell", "answer": "lung", "explanation": "It lives.", "choices": ["heart", "lung"]}
    with pytest.raises(InputError, match=message):
        evaluate(None, None, [row, row | change], options=options)


def test_a_completion_that_is_cut_off_counts_as_such(
    taught: tuple[Any, Any], rows: list[dict[str, Any]], scorer: Scorer
) -> None:
    result = evaluate(*taught, rows, scorer=scorer, max_completion_length=5)
    assert (result.truncated, result.mean_length, result.semantic) == (1.0, 5.0, 0.0)


def test_neither_batches_nor_order_matter_and_a_seed_decides_what_is_drawn(
    run: ModuleType, tokenizer: Any, rows: list[dict[str, Any]], scorer: Scorer
) -> None:
    model = run.make_model(tokenizer).train()
    state = torch.get_rng_state()
    settings: dict[str, Any] = {"scorer": scorer, "max_completion_length": 12}
    for temperature in (0.0, 1.0):
        results = [
            evaluate(model, tokenizer, rows, temperature=temperature, batch_size=size, **settings)
            for size in (1, 3)
        ]
        assert results[0].completions == results[1].completions
    other = evaluate(model, tokenizer, rows, temperature=1.0, seed=1, **settings)
    assert other.completions != results[0].completions
    assert len(set(other.completions)) == 4
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_settings_of_the_model_do_not_change_what_greedy_means(
    taught: tuple[Any, Any], rows: list[dict[str, Any]], scorer: Scorer
) -> None:
    model, tokenizer = taught
    plain = evaluate(model, tokenizer, rows, scorer=scorer, max_completion_length=20)
    before = model.generation_config.to_dict()
    model.generation_config.update(repetition_penalty=5.0, do_sample=True, temperature=3.0, top_k=2)
    try:
        assert evaluate(model, tokenizer, rows, scorer=scorer, max_completion_length=20) == plain
    finally:
        model.generation_config.update(**before)


def test_a_judge_says_how_often_a_model_beats_the_reference(
    taught: tuple[Any, Any], rows: list[dict[str, Any]], scorer: Scorer
) -> None:
    def longer(prompt: str, a: str, b: str, reference: str) -> int:
        assert reference in (a, b)
        assert prompt in [row["prompt"] for row in rows]
        return (len(a) > len(b)) - (len(a) < len(b))

    settings: dict[str, Any] = {"scorer": scorer, "max_completion_length": 40}
    result = evaluate(*taught, rows, judge=longer, **settings)
    pairs = zip(result.explanations, rows, strict=True)
    ahead = [
        (len(a or "") > len(r["explanation"])) + 0.5 * (len(a or "") == len(r["explanation"]))
        for a, r in pairs
    ]
    assert result.win_rate == sum(ahead) / 4


def test_conversations_are_answered_and_shown_as_text(
    run: ModuleType, tokenizer: Any, rows: list[dict[str, Any]], scorer: Scorer
) -> None:
    chats = as_chat(rows, "Be brief.")
    result = evaluate(run.make_model(tokenizer), tokenizer, chats, scorer=scorer, max_completion_length=4)
    assert result.questions[0] == "Be brief.\n\n" + rows[0]["prompt"]
    plain = run.make_tokenizer()
    plain.chat_template = None
    with pytest.raises(InputError, match="a tokenizer with a chat template"):
        evaluate(run.make_model(tokenizer), plain, chats, scorer=scorer)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"answer": ""}, {}, "in row 1, column 'answer'"),
        ({"explanation": None}, {}, "in row 1, column 'explanation'"),
        ({"prompt": "the " * 40}, {"max_completion_length": 30}, "1 to 34 tokens as the prompt of row 1"),
        ({}, {"temperature": -1}, "a temperature of 0 or more"),
        ({}, {"batch_size": 0}, "batch_size of 1 or more"),
        ({}, {"max_completion_length": True}, "max_completion_length of 1 or more"),
    ],
)
def test_what_cannot_be_evaluated_is_named(
    run: ModuleType,
    tokenizer: Any,
    change: dict[str, Any],
    options: dict[str, Any],
    message: str,
) -> None:
    model = run.make_model(tokenizer)
    model.config.max_position_embeddings = 64
    rows = [{"prompt": "the cell", "answer": "A", "explanation": "It lives."} for _ in range(2)]
    with pytest.raises(InputError, match=message):
        evaluate(model, tokenizer, [rows[0], rows[1] | change], **options)


def test_no_row_is_an_error(run: ModuleType, tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a row at least"):
        evaluate(run.make_model(tokenizer), tokenizer, [])
