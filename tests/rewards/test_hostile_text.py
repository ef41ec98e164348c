"""What no text can do to any reward: raise, take more than linear time, or depend on who else is scored."""

import copy
import math
import pickle
import random
import re
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastreward.rewards import BERTScoreReward, SemanticReward
from fastreward.rewards.answer import AnswerReward
from fastreward.rewards.base import Reward
from fastreward.rewards.combine import CombinedReward
from fastreward.rewards.format import FormatReward
from fastreward.rewards.guards import ContrastReward, EndingReward, LanguageReward, PromptCopyReward
from fastreward.rewards.judge import JudgeReward
from fastreward.rewards.rouge import RougeLReward
from fastreward.rewards.shaping import Power, Shaped
from fastreward.rewards.surface import LengthReward, RepetitionReward
from fastreward.rewards.words import words
from fastreward.scorer import Scorer

REFERENCE = "The heart pumps blood through the vessels of the body."
REFERENCES = (REFERENCE, "Insulin lowers the sugar in the blood.")
OPTIONS = ["the heart", "1,234", "a lung", "E. coli", "none"]
LARGE = 2**16
MEGABYTE = 10**6
LEAST_S = 0.02  # what takes less counts as this: short runs say nothing about growth
GROWTH = 8.0  # of the time when the text grows fourfold: 4 if linear, 16 if quadratic


def share_of_letters(text: str, reference: object) -> float:
    """A judge."""
    return sum(map(str.isalpha, text)) / len(text)


async def share_of_letters_async(text: str) -> float:
    """A judge that awaits."""
    return share_of_letters(text, None)


MAKERS: dict[str, Callable[[Scorer], Reward]] = {
    "semantic": lambda scorer: SemanticReward(scorer),
    "semantic, tag": lambda scorer: SemanticReward(scorer, extract="answer"),
    "bertscore": lambda scorer: BERTScoreReward(scorer),
    "format": lambda scorer: FormatReward(),
    "format, graded": lambda scorer: FormatReward(("think", "answer"), graded=True, outside=False),
    "answer, option": lambda scorer: AnswerReward("letter"),
    "answer, options": lambda scorer: AnswerReward("letter", options="options"),
    "answer, number": lambda scorer: AnswerReward("number"),
    "answer, text": lambda scorer: AnswerReward("reference", kind="text"),
    "rouge": lambda scorer: RougeLReward(stemmer=True, max_tokens=64),
    "rouge, own words": lambda scorer: RougeLReward(tokenize=words, max_tokens=64),
    "length": lambda scorer: LengthReward(),
    "length, tokens": lambda scorer: LengthReward(unit=scorer),
    "repetition": lambda scorer: RepetitionReward(),
    "repetition, characters": lambda scorer: RepetitionReward(8, unit="characters"),
    "judge": lambda scorer: JudgeReward(share_of_letters, reference="reference"),
    "judge, async": lambda scorer: JudgeReward(share_of_letters_async),
    "pattern": lambda scorer: LengthReward(extract=re.compile(r"<answer>([^<]*)</answer>")),
    "prompt copy": lambda scorer: PromptCopyReward(scorer),
    "contrast": lambda scorer: ContrastReward(scorer),
    "language": lambda scorer: LanguageReward(),
    "ending": lambda scorer: EndingReward(),
    "shaped": lambda scorer: Shaped(LengthReward(), Power(2)),
    "combined": lambda scorer: CombinedReward(
        [FormatReward(), RepetitionReward(), LengthReward()], weights=[0.4, 0.3, 0.3]
    ),
}

# What these do with a long text is the encoder's and the tokenizer's own.
MAKERS_WITH_ENCODER = re.compile("semantic$|bertscore|length, tokens|prompt copy|contrast")

FRAGMENTS = [
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    "<explanation>",
    "</explanation>",
    "<answer>B</answer>",
    "</",
    "<",
    ">",
    "\\boxed{",
    "{",
    "}",
    "\\frac{1}{",
    "The answer is ",
    "answer to ",
    "La risposta corretta è la ",
    "risposta alla ",
    "Answer: ",
    "####",
    "if the answer is ",
    "B is correct. ",
    "A or B ",
    ", or maybe ",
    "oppure forse la ",
    "\\boxed{A} or \\boxed{",
    "A\n",
    "B) ",
    "la ",
    "therefore, ",
    "heart ",
    "y",  # what stemmers have recursed on
    "yeed",
    "a",
    "1",
    "1,234.",
    "1/",
    "10^",
    "³⁻",
    "½",
    "$ = ",
    "**",
    "((",
    "'",
    " ",
    "\n",
    "\t \u3000",
    "القلب يضخ ",
    "\u202e\u2066",
    "\u200b\u200d\ufeff",
    "\u0301\u0327",
    "e\u0300",
    "\ud83d",
    "\udc00",
    "\x00",
    "😀",
    "👩🏽‍🔬",
    "心脏",
    "हृदय ",
    "ﬃ",
    "İ",
]


@pytest.fixture(scope="module")
def scorer(tiny_folder) -> Scorer:
    return Scorer(tiny_folder, device="cpu", dtype="float32", batch_invariant=True)


@pytest.fixture(scope="module", params=list(MAKERS))
def reward(request: pytest.FixtureRequest, scorer: Scorer) -> Reward:
    """Every reward."""
    return MAKERS[request.param](scorer)


def score(reward: Reward, texts: list[str], references: Sequence[str] = (REFERENCE,)) -> list[float | None]:
    """Score texts with every column that any of the rewards reads; references are taken in turn."""
    count = len(texts)
    return reward(
        prompts=["Why?"] * count,
        completions=texts,
        reference=[references[i % len(references)] for i in range(count)],
        letter=["B"] * count,
        number=[1234.5] * count,
        options=[OPTIONS] * count,
    )


def repeated(fragment: str, size: int) -> str:
    return (fragment * (size // len(fragment) + 1))[:size]


def mixed(size: int, seed: int = 0, think: bool = True) -> str:
    fragments = FRAGMENTS if think else [fragment for fragment in FRAGMENTS if "think" not in fragment]
    return "".join(random.Random(seed).choices(fragments, k=size // 4))[:size]


def is_sound(values: object, count: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) == count
        and all(value is None or (type(value) is float and math.isfinite(value)) for value in values)
    )


HOSTILE = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=5), max_size=40).map("".join)
ANY = st.text(st.characters(), max_size=100)  # lone surrogates included


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(HOSTILE | ANY, max_size=4))
def test_no_text_makes_a_reward_raise_or_give_anything_but_a_number(reward, texts):
    values = score(reward, texts)
    assert is_sound(values, len(texts))
    assert all(value is None or -1 - 1e-6 <= value <= 1 + 1e-6 for value in values)


# ContrastReward is held against the others' references, and so depends on the batch by its nature.
@pytest.mark.parametrize("reward", [name for name in MAKERS if name != "contrast"], indirect=True)
@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(HOSTILE, min_size=2, max_size=4), seed=st.integers(0, 99))
def test_a_reward_does_not_depend_on_the_rest_of_the_batch(reward, texts, seed):
    order = random.Random(seed).sample(range(len(texts)), len(texts))
    values = score(reward, texts)
    assert score(reward, [texts[i] for i in order]) == [values[i] for i in order]
    assert score(reward, texts[:1]) == values[:1]


@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(reference=HOSTILE | ANY)
def test_no_reference_makes_a_reward_raise(scorer, reference):
    for maker in MAKERS.values():
        columns = {"prompts": ["Why?"], "letter": ["B"], "number": [1], "options": [None]}
        if maker is MAKERS["answer, text"]:
            continue  # of a reference that says nothing it raises, and says so
        assert is_sound(maker(scorer)(completions=[REFERENCE], reference=[reference], **columns), 1)
    if any(map(str.isalnum, reference)):
        assert is_sound(AnswerReward("reference")(completions=[REFERENCE], reference=[reference]), 1)


@pytest.mark.parametrize(
    "text",
    [
        "<answer>" * 10_000,
        "</answer>" * 10_000,
        "<answer>" * 5_000 + "B" + "</answer>" * 5_000,
        "<answer>B</answer>" * 10_000,
        "<answer>A</answer><answer>B</answer>" * 5_000,
        "<think><answer>" * 5_000 + "</think></answer>" * 5_000,
        "".join(f"<tag{i}>" for i in range(10_000)),
    ],
    ids=["opened", "closed", "nested", "pairs", "contradicting", "crossed", "distinct"],
)
def test_ten_thousand_tags_are_scored(reward, text):
    assert is_sound(score(reward, [text]), 1)


@pytest.mark.parametrize("name", [name for name in MAKERS if not MAKERS_WITH_ENCODER.match(name)])
def test_the_time_grows_with_the_text_and_not_with_its_square(scorer, name):
    reward = MAKERS[name](scorer)
    for fragment in FRAGMENTS:
        assert_linear(reward, lambda size, fragment=fragment: repeated(fragment, size), LARGE)


def test_a_megabyte_of_everything_is_scored_in_linear_time(reward):
    assert_linear(reward, lambda size: f"{mixed(size, think=False)}<answer>B</answer>", MEGABYTE)


def test_the_check_of_growth_objects_to_a_quadratic_reward():
    reward = LengthReward(unit=lambda text: float(len(re.findall("a+b", text))))
    with pytest.raises(AssertionError, match="for four times as much"):
        assert_linear(reward, lambda size: repeated("a", size), 3 * 2**13)


def assert_linear(reward: Reward, text: Callable[[int], str], largest: int) -> None:
    """Grow the text fourfold until it is large; what is quadratic is caught before it takes for ever."""
    before = math.inf
    for size in (largest // 64, largest // 16, largest // 4, largest):
        now = seconds(reward, text(size), runs=1)
        if now > GROWTH * max(before, LEAST_S):  # measured again, with care
            before, now = seconds(reward, text(size // 4), runs=3), seconds(reward, text(size), runs=3)
            message = f"{before:.3f} s, and {now:.3f} s for four times as much"
            assert now <= GROWTH * max(before, LEAST_S), message
        before = now


def seconds(reward: Reward, text: str, runs: int) -> float:
    """CPU time of all threads: other processes may be at work."""
    times = []
    for run in range(runs):
        start = time.process_time()
        values = score(reward, [f"{run}{text}"])  # no cache has seen it
        times.append(time.process_time() - start)
        assert is_sound(values, 1)
    return statistics.median(times)


TEXTS = [mixed(200, seed) for seed in range(12)] + ["<answer>B</answer>", "The answer is B.", REFERENCE, ""]


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda reward: pickle.loads(pickle.dumps(reward))]
)
def test_a_copy_gives_the_same_and_starts_its_own_counts(reward, copied):
    expected = score(reward, TEXTS, REFERENCES)
    twin = copied(reward)
    assert twin.__name__ == reward.__name__
    if not hasattr(reward, "counts"):  # its parts count, whose own lines are above
        assert score(twin, TEXTS, REFERENCES) == expected
        return
    assert twin.counts == type(reward.counts)()
    assert score(twin, TEXTS, REFERENCES) == expected
    assert twin.counts.samples == len(TEXTS)
    assert type(twin.counts) is type(reward.counts)


def test_eight_threads_at_once_give_what_one_gives(reward):
    expected = score(reward, TEXTS, REFERENCES)
    before = getattr(reward, "counts", None)
    start = threading.Barrier(8)

    def run(_: int) -> list[float | None]:
        start.wait()
        return score(reward, TEXTS, REFERENCES)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(run, range(8))) == [expected] * 8
    if before is not None:
        assert reward.counts.samples == before.samples + 8 * len(TEXTS)
