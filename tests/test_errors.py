import pickle
import re

import pytest
import torch

from fastreward.errors import (
    BackendUnavailableError,
    CheckpointError,
    FastRewardError,
    InputError,
    NonFiniteError,
    UnsupportedArchitectureError,
)
from fastreward.scorer import Scorer

# What is scored where an overflow is wanted: one text does, the others do not.
OVERFLOWING, FINE = "boom", "heart"


@pytest.fixture(scope="module")
def scorer(tiny_folder):
    return Scorer(tiny_folder, device="cpu", dtype="float32")


def assert_refused(error, expected, received, remedy, call):
    """Check the type of an exception and, by patterns, the three parts of its message."""
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    for part, pattern in zip(caught.value.args, (expected, received, remedy), strict=True):
        assert re.search(pattern, part), part


# The exceptions


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (InputError, ValueError),
        (BackendUnavailableError, RuntimeError),
        (CheckpointError, RuntimeError),
        (UnsupportedArchitectureError, CheckpointError),
        (NonFiniteError, ArithmeticError),
    ],
)
def test_an_exception_is_of_our_family_and_of_a_builtin_one_and_survives_pickling(error, builtin):
    assert issubclass(error, FastRewardError)
    assert issubclass(error, builtin)
    copy = pickle.loads(pickle.dumps(error("a cat", "a dog", "Get a cat.")))
    assert type(copy) is error
    assert str(copy) == "Expected a cat, got a dog. Get a cat."
    assert (copy.expected, copy.received, copy.remedy) == ("a cat", "a dog", "Get a cat.")


# Arguments of a Scorer


@pytest.mark.parametrize(
    ("arguments", "expected", "received", "remedy"),
    [
        ({"backend": "onnxx"}, "encoder back-end among packed", "'onnxx'", "backend=None"),
        ({"dtype": "float8"}, "float32, bfloat16, float16", "'float8'", "Correct the name"),
        ({"dtype": "float16"}, "float32, bfloat16", "float16", "Pass one of them"),
        ({"device": "tpu"}, "a device such as 'cpu' or 'cuda:0'", "'tpu'", "Correct the name"),
        ({"pooling": "median"}, "pooling among mean, cls, last, max", "'median'", "Correct the name"),
        ({"long_texts": "split"}, "'truncate' or 'chunk'", "'split'", "Correct the name"),
        ({"max_batch_tokens": 0}, "max_batch_tokens of 1 or more", "0", "whole number, or None"),
        ({"reference_cache_bytes": -1}, "reference_cache_bytes of 0 or more", "-1", "whole number of bytes"),
        ({"max_seq_length": 513}, "max_seq_length of 512 at most", "513", "long_texts='chunk'"),
        ({"max_seq_length": 2}, "room for text beside 2 special tokens", "2", "larger max_seq_length"),
        ({"max_seq_length": -1}, "max_seq_length of 1 or more", "-1", "whole number, or None"),
        ({"prompt": "query: ", "prompt_name": "query"}, "prompt or prompt_name", "both", "one of them"),
        ({"prompt_name": "query"}, "a prompt_name among none", "'query'", r"prompt='\.\.\.'"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_an_argument_that_cannot_be_used_is_refused(tiny_folder, arguments, expected, received, remedy):
    arguments = {"device": "cpu", "dtype": "float32", **arguments}
    assert_refused(InputError, expected, received, remedy, lambda: Scorer(tiny_folder, **arguments))


def test_an_unknown_prompt_name_is_refused_with_those_that_exist(tiny_checkpoint):
    folder = tiny_checkpoint(prompts={"query": "query: ", "passage": "passage: "})
    assert_refused(
        InputError,
        "among query, passage",
        "'question'",
        "Correct",
        lambda: Scorer(folder, prompt_name="question"),
    )


def test_a_prompt_is_refused_where_it_must_be_left_out_of_the_pooling(tiny_checkpoint):
    folder = tiny_checkpoint(
        pooling={"pooling_mode": "mean", "include_prompt": False},
        prompts={"query": "query: "},
        default_prompt_name="query",
    )
    assert_refused(InputError, "no prompt with an encoder", "'query: '", "prompt=''", lambda: Scorer(folder))
    assert Scorer(folder, prompt="").embed(["heart"]).shape == (1, 32)


def test_a_gpu_that_is_not_there_is_never_served_on_the_cpu(tiny_folder):
    def scorer():
        return Scorer(tiny_folder, device="cuda:99")

    assert_refused(BackendUnavailableError, "cuda:99", r"\d+ CUDA devices", "device='cpu'", scorer)


def test_a_folder_without_a_tokenizer_is_refused(tiny_checkpoint):
    folder = tiny_checkpoint()
    (folder / "tokenizer.json").unlink()
    remedy = "AutoTokenizer.*save_pretrained"
    assert_refused(CheckpointError, r"tokenizer\.json", f"none in {folder}", remedy, lambda: Scorer(folder))


def test_a_tokenizer_with_more_tokens_than_the_model_has_is_refused(tiny_checkpoint):
    folder = tiny_checkpoint(vocab_size=100)
    assert_refused(
        CheckpointError,
        "at most 100 tokens, the model's vocab_size",
        r"\d+ in .*tokenizer\.json",
        "belong together",
        lambda: Scorer(folder, device="cpu"),
    )


# Texts


@pytest.mark.parametrize(
    ("completions", "references", "expected", "received"),
    [
        (["a", "b", "c"], ["a", "b"], "one reference .* per completion", "3 completions and 2 references"),
        ([], ["a"], "one reference .* per completion", "0 completions and 1 references"),
        (["a", None], ["a", "b"], r"a string in completions\[1\]", "None"),
        ([3.5], ["a"], r"a string in completions\[0\]", "float"),
        ([b"a"], ["a"], r"a string in completions\[0\]", "bytes"),
        ([["a"]], ["a"], r"a string in completions\[0\]", "list"),
        ("a", ["a"], "a list of strings as completions", "one string"),
        (["a"], "a", "a list of references", "one string"),
        (["a"], [None], r"references\[0\]", "None"),
        (["a", "b"], ["a", 7], r"a string or a list of strings in references\[1\]", "int"),
        (["a"], [{"a": 1}], r"references\[0\]", "dict"),
        (["a"], [["b", None]], r"a string in references\[0\]\[1\]", "None"),
        (["a", "b"], ["a", []], r"at least one reference in references\[1\]", "an empty list"),
        (None, ["a"], "completions", "None"),
        (["a"], None, "references", "None"),
    ],
)
def test_texts_that_cannot_be_scored_are_refused(scorer, completions, references, expected, received):
    before = scorer.stats
    remedy = r"^(Pass|Leave the sample out)\b.*\.$"
    assert_refused(InputError, expected, received, remedy, lambda: scorer.score(completions, references))
    assert scorer.stats == before


@pytest.mark.parametrize(
    ("texts", "expected", "received"),
    [
        ("heart", "a list of strings as texts", "one string"),
        (["a", None], r"a string in texts\[1\]", "None"),
        ([1], r"a string in texts\[0\]", "int"),
        (None, "texts", "None"),
    ],
)
def test_texts_that_cannot_be_embedded_are_refused(scorer, texts, expected, received):
    assert_refused(InputError, expected, received, r"\.$", lambda: scorer.embed(texts))


def test_a_lone_surrogate_scores_as_the_replacement_character(scorer):
    broken, replaced = ["heart \ud83d blood", "\udfff"], ["heart \ufffd blood", "\ufffd"]
    references = ["blood", "heart \udfff"]
    assert torch.equal(scorer.score(broken, references), scorer.score(replaced, references))
    assert torch.equal(scorer.embed(broken), scorer.embed(replaced))


@pytest.mark.filterwarnings("ignore:Texts longer than")
@pytest.mark.parametrize("megabyte", ["heart pumps blood " * 60_000, "x" * 1_000_000, "\n" * 1_000_000])
def test_a_text_of_a_megabyte_scores_as_its_beginning(scorer, megabyte):
    score = scorer.score([megabyte], ["heart"])
    torch.testing.assert_close(score, scorer.score([megabyte[:10_000]], ["heart"]), atol=2e-6, rtol=0)


def test_a_hundred_thousand_empty_strings_are_encoded_once(tiny_folder):
    scorer = Scorer(tiny_folder, device="cpu", dtype="float32")
    scores = scorer.score([""] * 100_000, [""] * 100_000)
    torch.testing.assert_close(scores, torch.ones(100_000), atol=1e-6, rtol=0)
    assert (scorer.stats.texts, scorer.stats.unique_texts, scorer.stats.encoded_texts) == (200_000, 2, 2)


# Numbers


@pytest.fixture
def overflowing_scorer(tiny_checkpoint):
    """A scorer in which `OVERFLOWING` alone gives infinity: a large feature meets a huge, finite weight."""

    def edit(weights):
        weights["embeddings.word_embeddings.weight"][-1] = 100.0 * torch.eye(48)[0]  # the last word is "boom"
        for layer in range(2):
            name = f"encoder.layer.{layer}"
            weights[f"{name}.attention.output.dense.weight"].zero_()
            weights[f"{name}.intermediate.dense.weight"][0] = torch.eye(48)[0] * 7e37
            weights[f"{name}.output.dense.weight"][:, 0] = 0.0

    return Scorer(tiny_checkpoint(hidden_size=48, edit_weights=edit), device="cpu", dtype="float32")


@pytest.mark.parametrize(
    "call",
    [
        lambda scorer: scorer.score([FINE, OVERFLOWING], [FINE, FINE]),
        lambda scorer: scorer.score([FINE], [OVERFLOWING]),
        lambda scorer: scorer.score([OVERFLOWING], [["body", FINE]]),
        lambda scorer: scorer.embed([FINE, OVERFLOWING]),
    ],
    ids=["a completion", "a reference", "one of several pairs", "an embedding"],
)
def test_an_overflow_in_the_encoder_is_never_a_score(overflowing_scorer, call):
    assert_refused(
        NonFiniteError,
        "finite values from the encoder",
        "NaN or infinity in float32",
        r"\.$",
        lambda: call(overflowing_scorer),
    )
    assert overflowing_scorer.score([FINE], ["body"]).isfinite().all()


def test_a_reference_that_overflowed_is_not_kept(overflowing_scorer):
    for _ in range(2):
        with pytest.raises(NonFiniteError):
            overflowing_scorer.score([FINE], [OVERFLOWING])
    assert overflowing_scorer.stats.reference_hits == 0
