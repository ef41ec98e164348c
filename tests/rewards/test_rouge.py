import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastreward.errors import BackendUnavailableError, InputError
from fastreward.rewards.base import RewardCounts
from fastreward.rewards.rouge import RougeLReward
from fastreward.rewards.words import words

rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="needs the extra trl")

HEART = "The heart pumps blood through the vessels of the body."
TEXT = st.text(alphabet="ab cdé.\n", max_size=40)


def longest_common(left: list[str], right: list[str]) -> int:
    """Length of the longest common subsequence, by its recurrence."""
    row = [0] * (len(right) + 1)
    for word in left:
        above = row[:]
        for i, other in enumerate(right):
            row[i + 1] = above[i] + 1 if word == other else max(above[i + 1], row[i])
    return row[-1]


@settings(deadline=None, max_examples=200)
@given(TEXT, TEXT.filter(str.strip), st.booleans())
def test_the_score_is_rouge_scores_own(text, reference, stemmer):
    expected = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=stemmer).score(reference, text)["rougeL"]
    for part, value in {
        "f1": expected.fmeasure,
        "precision": expected.precision,
        "recall": expected.recall,
    }.items():
        reward = RougeLReward(score=part, stemmer=stemmer)
        assert reward(completions=[text], reference=[reference]) == [value if text.strip() else 0.0]


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.sampled_from("abcd"), min_size=1, max_size=20),
    st.lists(st.sampled_from("abcd"), min_size=1, max_size=20),
)
def test_the_score_is_that_of_the_longest_common_subsequence(left, right):
    common = longest_common(left, right)
    expected = 2 * common / (len(left) + len(right))
    rewards = RougeLReward()(completions=[" ".join(left)], reference=[" ".join(right)])
    assert rewards == [pytest.approx(expected, abs=1e-12)]


def test_of_several_references_the_best_counts():
    several = ["Insulin lowers glucose.", None, HEART]
    assert RougeLReward()(completions=[HEART], reference=[several]) == [1.0]


def test_it_is_brittle_as_the_docs_say():
    paraphrase, negated = "Circulation is driven by a muscle.", HEART.replace("pumps", "does not pump")
    rewards = RougeLReward()(completions=[paraphrase, negated], reference=[HEART] * 2)
    assert rewards[0] < 0.3
    assert rewards[1] > 0.7


def test_only_the_first_words_are_compared():
    reward = RougeLReward(max_tokens=3)
    rewards = reward(
        completions=["a b c", "a b c d e", "x y z a b c", "a, (b) c!"],
        reference=["a b c d", "a b c x", "a b c", "a b c"],
    )
    assert rewards == [1.0, 1.0, 0.0, 1.0]


def test_words_of_ones_own_bring_other_scripts():
    text = "Сердце качает кровь"
    assert RougeLReward()(completions=[text], reference=[text]) == [0.0]
    own = RougeLReward(tokenize=words, max_tokens=3)
    assert own(completions=[text, "心脏血液"], reference=[text, "心脏血"]) == [1.0, 1.0]


def test_a_stem_is_as_good_as_a_word():
    plain, stemmed = (RougeLReward(stemmer=stemmer) for stemmer in (False, True))
    assert plain(completions=["pumping hearts"], reference=["pumped heart"]) == [0.0]
    assert stemmed(completions=["pumping hearts"], reference=["pumped heart"]) == [1.0]


def test_what_is_missing_is_none_or_zero_and_counted():
    reward = RougeLReward("target")
    assert reward(completions=["a", "", "a"], target=[None, "a", "a"]) == [None, 0.0, 1.0]
    assert reward.counts == RewardCounts(samples=3, scored=1, missing_reference=1, no_text=1)


@pytest.mark.parametrize(
    "options",
    [
        {"score": "f2"},
        {"max_tokens": 0},
        {"max_tokens": 1.5},
        {"max_tokens": True},
        {"tokenize": "words"},
        {"tokenize": words, "stemmer": True},
        {"reference": None},
    ],
)
def test_an_argument_that_cannot_be_is_refused_at_once(options):
    with pytest.raises(InputError):
        RougeLReward(**options)


def test_without_the_package_the_remedy_is_named_when_the_reward_is_made():
    code = (
        "import sys; sys.modules['rouge_score'] = None\n"
        "from fastreward.rewards.rouge import RougeLReward\n"
        "from fastreward.errors import BackendUnavailableError\n"
        "try:\n    RougeLReward()\n"
        "except BackendUnavailableError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith('Install it: pip install "fastreward[trl]".')
    assert issubclass(BackendUnavailableError, RuntimeError)


def test_the_repr_shows_the_configuration():
    assert repr(RougeLReward(stemmer=True)) == (
        "RougeLReward(reference='reference', score='f1', stemmer=True, max_tokens=512, tokenize=None, "
        "extract=None, strip_thinking=True, no_text='zero', name='rouge_l_reward')"
    )
