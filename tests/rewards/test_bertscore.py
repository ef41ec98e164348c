import copy
import math
import pickle
import re
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fastreward import matching
from fastreward.errors import InputError, NonFiniteError
from fastreward.rewards import RewardCounts, SemanticReward
from fastreward.rewards.bertscore import BERTScoreReward, idf_weights
from fastreward.scorer import Scorer

FP32 = {"device": "cpu", "dtype": "float32"}
# Hidden states of two implementations differ by some 1e-6 of their length, and a similarity by as much.
CLOSE = 1e-5
# What a score may move by in fp32 when other texts stand beside it.
FP32_ROUNDING = 2e-6

HEART = "the heart pumps blood"
COMPLETIONS = [
    "the body pumps blood, the heart lowers glucose",
    "energy: insulin lowers glucose in the blood",
    "query boom query",
    HEART,
    "x",
    "The HEART! 42",
]
REFERENCES = [HEART, "insulin lowers blood glucose", HEART, HEART, "energy of the body", "the heart"]
CORPUS = [*REFERENCES, "glucose", "the query"]
UNCLOSED = "<think>is it the heart, or"


@pytest.fixture(scope="module")
def scorer(tiny_folder):
    return Scorer(tiny_folder, **FP32)


@pytest.fixture
def reward(scorer):
    return BERTScoreReward(scorer)


@pytest.fixture(scope="session")
def definition(tiny_folder, huggingface_hidden):
    """Precision, recall and F1 of pairs by the paper's formulas in fp64, on Hugging Face's hidden states."""

    def score(scorer, completions, references, token_weights=None):
        ids = scorer.tokenizer([*completions, *references])
        hidden = huggingface_hidden(tiny_folder, ids)
        special = set(scorer.tokenizer([""])[0])
        sides = []
        for tokens, states in zip(ids, hidden, strict=True):
            weigh = (lambda token: 1.0) if token_weights is None else (lambda token: token_weights[token])
            weights = [0.0 if token in special else float(weigh(token)) for token in tokens]
            sides.append((torch.nn.functional.normalize(states.double(), dim=1), weights))
        pairs = zip(sides[: len(completions)], sides[len(completions) :], strict=True)
        return [pair_score(*candidate, *reference) for candidate, reference in pairs]

    return score


def pair_score(candidate, v, reference, w):
    if not sum(v) or not sum(w):
        return 0.0, 0.0, 0.0
    precision = sum(v[i] * max(float(x @ y) for y in reference) for i, x in enumerate(candidate)) / sum(v)
    recall = sum(w[j] * max(float(x @ y) for x in candidate) for j, y in enumerate(reference)) / sum(w)
    return precision, recall, 2 * precision * recall / (precision + recall)


def rewards_of(scorer, part, **options):
    return BERTScoreReward(scorer, score=part, **options)(completions=COMPLETIONS, reference=REFERENCES)


PARTS = [("precision", 0), ("recall", 1), ("f1", 2)]


# The score


@pytest.mark.parametrize(("part", "column"), PARTS)
def test_the_reward_is_the_paper_s_definition(scorer, definition, part, column):
    expected = [scores[column] for scores in definition(scorer, COMPLETIONS, REFERENCES)]
    assert rewards_of(scorer, part) == pytest.approx(expected, abs=CLOSE)
    assert len(set(expected)) == len(expected)


@pytest.mark.parametrize(("part", "column"), PARTS)
def test_idf_weighs_tokens_by_their_rarity_in_the_texts_it_is_fitted_on(scorer, definition, part, column):
    documents = Counter(token for text in CORPUS for token in set(scorer.tokenizer([text])[0]))
    weights = defaultdict(lambda: math.log(len(CORPUS) + 1))
    weights.update({t: math.log((len(CORPUS) + 1) / (count + 1)) for t, count in documents.items()})
    expected = [scores[column] for scores in definition(scorer, COMPLETIONS, REFERENCES, weights)]
    fitted = rewards_of(scorer, part, idf=CORPUS)
    assert fitted == pytest.approx(expected, abs=CLOSE)
    assert rewards_of(scorer, part, idf=weights) == pytest.approx(fitted, abs=FP32_ROUNDING)
    assert fitted != pytest.approx(rewards_of(scorer, part), abs=1e-3)


@pytest.fixture(scope="module")
def bert_score():
    """The authors' code; it imports what only its plots and downloads need."""
    return pytest.importorskip("bert_score.utils", reason="needs the package bert-score")


@pytest.mark.parametrize("idf", [False, True], ids=["plain", "idf"])
def test_the_reward_is_that_of_the_bert_score_package(scorer, tiny_folder, bert_score, idf):
    transformers = pytest.importorskip("transformers")
    model = transformers.BertModel.from_pretrained(tiny_folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_folder, model_max_length=512)
    if idf:
        weights = bert_score.get_idf_dict(CORPUS, tokenizer, nthreads=0)
    else:
        weights = defaultdict(lambda: 1.0, {tokenizer.cls_token_id: 0.0, tokenizer.sep_token_id: 0.0})
    # One pair at a time: where there is padding, that package lets it beat similarities below 0.
    expected = [
        bert_score.bert_cos_score_idf(model, [reference], [text], tokenizer, weights, device="cpu")[0]
        for text, reference in zip(COMPLETIONS, REFERENCES, strict=True)
    ]
    for part, column in PARTS:
        got = rewards_of(scorer, part, idf=CORPUS if idf else False)
        assert got == pytest.approx([float(scores[column]) for scores in expected], abs=CLOSE)


def test_the_fitted_weights_are_those_of_the_bert_score_package(scorer, tiny_folder, bert_score):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_folder, model_max_length=512)
    theirs = bert_score.get_idf_dict(CORPUS, tokenizer, nthreads=0)
    expected = torch.tensor([theirs[token] for token in range(scorer.tokenizer.vocab_size)])
    torch.testing.assert_close(idf_weights(scorer.tokenizer, CORPUS), expected)


def test_weights_are_fitted_part_by_part_as_they_are_at_once(scorer, monkeypatch):
    expected = idf_weights(scorer.tokenizer, CORPUS)
    monkeypatch.setattr("fastreward.rewards.bertscore.TEXTS_AT_ONCE", 3)
    assert torch.equal(idf_weights(scorer.tokenizer, CORPUS), expected)


@pytest.mark.parametrize("missing", [None, "", " ", float("nan"), [None]])
def test_missing_texts_count_for_nothing_in_the_weights(scorer, missing):
    expected = rewards_of(scorer, "f1", idf=CORPUS)
    assert rewards_of(scorer, "f1", idf=[*CORPUS, missing]) == expected
    assert rewards_of(scorer, "f1", idf=[CORPUS[:3], *CORPUS[3:]]) == expected


def test_given_weights_weigh_other_tokens_like_their_heaviest(scorer):
    heart, blood = (scorer.tokenizer([word])[0][1] for word in ("heart", "blood"))
    vector = torch.full((scorer.tokenizer.vocab_size,), 2.0)
    vector[heart], vector[blood] = 0.5, 0.0
    expected = scorer.maxsim(COMPLETIONS, REFERENCES, token_weights=vector).recall.tolist()
    assert rewards_of(scorer, "recall", idf={heart: 0.5, blood: 0.0, 0: 2.0}) == expected


def test_of_several_references_the_one_with_the_best_f1_counts(scorer):
    options = [REFERENCES[0], REFERENCES[1], "glucose"]
    each = [scorer.maxsim([COMPLETIONS[1]], [option]) for option in options]
    best = max(range(3), key=lambda option: float(each[option].f1))
    together = scorer.maxsim([COMPLETIONS[1]], [options])
    for part, _ in PARTS:
        torch.testing.assert_close(getattr(together, part), getattr(each[best], part), atol=2e-6, rtol=0)
    assert max(range(3), key=lambda option: float(each[option].recall)) != best  # it is F1 that decides


def test_a_rescaled_score_is_1_for_the_same_text_and_0_at_the_baseline(scorer):
    plain = rewards_of(scorer, "f1")
    rescaled = rewards_of(scorer, "f1", rescale_baseline=0.4)
    assert rescaled == pytest.approx([(value - 0.4) / 0.6 for value in plain], abs=FP32_ROUNDING)
    assert rescaled[3] == pytest.approx(1.0, abs=FP32_ROUNDING)


@pytest.mark.parametrize("baseline", [0.85, -1.0])
@pytest.mark.parametrize(("part", "column"), PARTS)
def test_a_pair_with_nothing_to_match_keeps_0_beside_a_baseline(scorer, part, column, baseline):
    blank = "\u200b"  # some text, but no token
    pairs = {"completions": [blank, HEART, "glucose", "boom"], "reference": [HEART, blank, "boom", "glucose"]}
    weights = defaultdict(lambda: 1.0, {scorer.tokenizer(["boom"])[0][1]: 0.0})
    got = BERTScoreReward(scorer, score=part, idf=weights, rescale_baseline=baseline)(**pairs)
    assert got == [0.0] * 4
    real = BERTScoreReward(scorer, score=part, rescale_baseline=baseline)(**pairs)
    plain = getattr(scorer.maxsim(["glucose"], ["boom"]), part).item()
    assert real[2] == pytest.approx((plain - baseline) / (1 - baseline), abs=1e-5)


def test_special_tokens_do_not_count_but_can_be_matched(scorer, monkeypatch):
    plain = scorer.maxsim([COMPLETIONS[2]], [HEART])
    empty = scorer.maxsim(["", HEART], [HEART, ""])
    assert torch.stack([empty.precision, empty.recall, empty.f1]).tolist() == [[0.0, 0.0]] * 3

    def everything_counts(ids, special, by_id):
        return torch.ones(ids.shape)

    monkeypatch.setattr(matching, "_weights", everything_counts)
    counted = scorer.maxsim([COMPLETIONS[2]], [HEART])
    assert abs(counted.f1 - plain.f1) > 1e-3
    assert (scorer.maxsim([""], [HEART]).precision > 0).all()


# The scorer


def test_every_distinct_text_is_encoded_once_a_call(scorer):
    before = scorer.stats
    scorer.maxsim([HEART, "boom", "boom", "query"], [["boom", "energy"], "energy", "energy", HEART])
    spent = scorer.stats - before
    assert spent.encoded_texts == len({HEART, "boom", "query", "energy"})
    assert spent.texts == 4 + 5
    assert spent.unique_texts == 3 + 3


@pytest.mark.parametrize("chars", [1, 60, 10_000])
def test_however_little_is_matched_at_once_scores_are_the_same_and_each_text_is_encoded_once(
    scorer, monkeypatch, chars
):
    completions, references = [*COMPLETIONS, *REFERENCES], [*REFERENCES, *COMPLETIONS]
    expected = scorer.maxsim(completions, references)
    monkeypatch.setitem(matching.CHARS_AT_ONCE, "cpu", chars)
    before = scorer.stats
    result = scorer.maxsim(completions, references)
    for part, _ in PARTS:
        torch.testing.assert_close(getattr(result, part), getattr(expected, part), atol=2e-6, rtol=0)
    assert (scorer.stats - before).encoded_texts == len({*completions, *references})


def test_a_text_that_many_parts_need_is_copied_once(scorer, monkeypatch):
    monkeypatch.setitem(matching.CHARS_AT_ONCE, "cpu", 1)
    seen, match_part = [], matching._match_part

    def spy(part, known):
        seen.append(known[HEART].states)
        return match_part(part, known)

    monkeypatch.setattr(matching, "_match_part", spy)
    scorer.maxsim(["glucose", "boom", "query", "energy"], [HEART] * 4)
    assert len({states.data_ptr() for states in seen[1:]}) == 1
    assert seen[1].untyped_storage().nbytes() == seen[1].nbytes < seen[0].untyped_storage().nbytes()


def test_pairs_are_split_where_the_texts_that_are_held_come_to_the_bound():
    pairs = [("aa", "bbb"), ("cc", "bbb"), ("d", "eeee"), ("aa", "eeee"), ("f", "x" * 99), ("g", "h")]
    parts = list(matching._parts(pairs, 7))
    assert parts == [pairs[:2], pairs[2:4], pairs[4:5], pairs[5:]]


def test_precision_is_recall_with_the_texts_exchanged(scorer):
    there, back = scorer.maxsim(COMPLETIONS, REFERENCES), scorer.maxsim(REFERENCES, COMPLETIONS)
    torch.testing.assert_close(there.precision, back.recall, atol=FP32_ROUNDING, rtol=0)
    torch.testing.assert_close(there.f1, back.f1, atol=FP32_ROUNDING, rtol=0)


def test_a_long_text_is_all_of_its_windows_where_it_is_not_truncated(tiny_folder, huggingface_hidden):
    late, reference = "energy " * 40 + "insulin lowers glucose", "insulin lowers glucose"
    with pytest.warns(UserWarning, match="truncated"):
        cut = Scorer(tiny_folder, max_seq_length=16, **FP32).maxsim([late], [reference])
    scorer = Scorer(tiny_folder, max_seq_length=16, long_texts="chunk", **FP32)
    scores = scorer.maxsim([late], [reference])
    content = scorer.tokenizer.content([late])[0]
    windows = [scorer.tokenizer.frame(content[i : i + 14]).tolist() for i in range(0, len(content), 14)]
    *states, target = (
        torch.nn.functional.normalize(hidden.double(), dim=1)
        for hidden in huggingface_hidden(tiny_folder, [*windows, scorer.tokenizer([reference])[0]])
    )
    weights = [weight for window in windows for weight in [0.0, *[1.0] * (len(window) - 2), 0.0]]
    expected = pair_score(torch.cat(states), weights, target, [0.0, 1.0, 1.0, 1.0, 0.0])
    assert [float(getattr(scores, part)) for part, _ in PARTS] == pytest.approx(expected, abs=CLOSE)
    assert scores.recall > cut.recall
    assert scorer.stats.tokens == len(weights) + len(target)
    assert scorer.stats.encoded_texts == 2


def test_precisions_agree(tiny_folder, precision):
    device, dtype = precision
    expected = Scorer(tiny_folder, **FP32).maxsim(COMPLETIONS, REFERENCES).f1
    got = Scorer(tiny_folder, device=device, dtype=dtype).maxsim(COMPLETIONS, REFERENCES).f1
    assert got.device.type == "cpu"
    bound = 1e-4 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(got, expected, atol=bound, rtol=0)


def test_nothing_gives_nothing(scorer):
    result = scorer.maxsim([], [])
    assert [getattr(result, part).tolist() for part, _ in PARTS] == [[], [], []]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.ones(3), r"token_weights \[\d+\].*got float32 \[3\]"),
        ([1.0, 1.0], r"token_weights \[\d+\].*got a list\. Pass a tensor"),
        (1, "floating dtype.*got int64"),
        (True, "floating dtype.*got bool"),
        (-1.0, "finite token_weights of 0 or more, got -1.0 for the token id 0"),
        (float("nan"), "finite token_weights of 0 or more, got nan"),
        (float("inf"), "finite token_weights of 0 or more, got inf"),
    ],
)
def test_token_weights_that_do_not_fit_are_refused(scorer, weights, message):
    if isinstance(weights, int | float):
        weights = torch.full((scorer.tokenizer.vocab_size,), weights)
    with pytest.raises(InputError, match=message):
        scorer.maxsim([HEART], [HEART], token_weights=weights)


def test_texts_and_references_are_checked_as_for_a_score(scorer):
    for call in (scorer.maxsim, scorer.score):
        with pytest.raises(InputError, match=r"completions\[1\]"):
            call([HEART, None], [HEART, HEART])
        with pytest.raises(InputError, match="2 completions and 1 references"):
            call([HEART, HEART], [HEART])


def test_a_score_that_is_no_number_is_an_error(tiny_checkpoint):
    def break_one_word(weights):
        weights["embeddings.word_embeddings.weight"][-1] = 3e38  # of "boom": its LayerNorm overflows

    scorer = Scorer(tiny_checkpoint(edit_weights=break_one_word), **FP32)
    assert scorer.maxsim([HEART], ["the heart"]).f1 > 0
    with pytest.raises(NonFiniteError):
        scorer.maxsim([HEART, HEART], [[HEART, "boom"], HEART])


# The contract of a reward


def test_rewards_are_python_floats_and_what_cannot_be_judged_is_none(scorer):
    reward = BERTScoreReward(scorer, extract="explanation")
    completions = [f"<explanation>{HEART}</explanation>"] * 3 + [UNCLOSED]
    logged = []
    rewards = reward(
        completions=completions,
        reference=[HEART, None, [None, "boom", HEART], HEART],
        prompts=["Why?"] * 4,
        log_metric=lambda *pair: logged.append(pair),
    )
    assert [type(value) for value in rewards] == [float, type(None), float, float]
    assert rewards == [pytest.approx(1.0, abs=1e-6), None, pytest.approx(1.0, abs=1e-6), 0.0]
    assert reward.counts == RewardCounts(samples=4, scored=2, missing_reference=1, no_text=1)
    assert logged == [
        ("bertscore_reward/no_text_ratio", 0.25),
        ("bertscore_reward/missing_reference_ratio", 0.25),
    ]


@pytest.mark.parametrize(("no_text", "worth"), [("zero", 0.0), ("none", None)])
def test_no_text_is_worth_what_is_asked_for_also_beside_a_baseline(scorer, no_text, worth):
    reward = BERTScoreReward(scorer, no_text=no_text, rescale_baseline=0.5)
    assert reward(completions=[UNCLOSED], reference=[HEART]) == [worth]


def test_a_batch_without_anything_to_score_reaches_no_encoder(tmp_path):
    reward = BERTScoreReward(tmp_path / "no such encoder", idf=CORPUS)
    assert reward(completions=[UNCLOSED, HEART], reference=[HEART, None]) == [0.0, None]


def test_a_score_does_not_depend_on_its_batch(reward):
    together = reward(completions=COMPLETIONS, reference=REFERENCES)
    alone = [
        reward(completions=[text], reference=[reference])[0]
        for text, reference in zip(COMPLETIONS, REFERENCES, strict=True)
    ]
    assert together == pytest.approx(alone, abs=FP32_ROUNDING)


def test_what_a_trainer_sets_for_all_of_pytorch_changes_nothing(reward):
    batch = {"completions": [*COMPLETIONS, "\u200b"], "reference": [*REFERENCES, HEART]}
    expected = reward(**batch)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"), torch.autocast("cpu", torch.bfloat16):
            assert reward(**batch) == expected
    finally:
        torch.set_default_dtype(torch.float32)


def test_it_shares_a_scorer_with_other_rewards(scorer):
    rewards = [SemanticReward(scorer), BERTScoreReward(scorer)]
    assert rewards[0].scorer is rewards[1].scorer
    same = [reward(completions=[HEART], reference=[HEART]) for reward in rewards]
    assert same == [pytest.approx([1.0], abs=1e-6)] * 2


def test_eight_threads_at_once_give_what_one_gives(scorer):
    expected = rewards_of(scorer, "f1", idf=CORPUS)
    reward = BERTScoreReward(scorer, idf=CORPUS)
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(reward, COMPLETIONS, reference=REFERENCES) for _ in range(8)]
    for call in calls:
        assert call.result() == pytest.approx(expected, abs=FP32_ROUNDING)
    assert reward.counts.scored == 8 * len(COMPLETIONS)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda reward: pickle.loads(pickle.dumps(reward))])
@pytest.mark.parametrize("idf", [False, CORPUS, defaultdict(lambda: 3.0, {5: 1.0, 7: 0.25})])
def test_a_copy_has_the_configuration_and_starts_its_own_counts(scorer, copied, idf):
    reward = BERTScoreReward(
        scorer, score="recall", idf=idf, rescale_baseline=0.25, extract=re.compile(r".+"), name="mine"
    )
    before = pickle.dumps(reward)
    expected = reward(completions=COMPLETIONS, reference=REFERENCES)
    assert pickle.dumps(reward) == before
    twin = copied(reward)
    assert twin.counts == RewardCounts()
    assert twin.__name__ == "mine"
    assert twin(completions=COMPLETIONS, reference=REFERENCES) == pytest.approx(expected, abs=FP32_ROUNDING)


def test_the_repr_shows_the_configuration():
    options = "reference='why', extract=None, strip_thinking=True, no_text='zero', "
    described = f"BERTScoreReward('some/encoder', {options}score='f1', idf=False, rescale_baseline=None, "
    reward = BERTScoreReward("some/encoder", reference="why")
    assert repr(reward) == f"{described}name='bertscore_reward')"
    assert "idf=<8 texts>, rescale_baseline=0.5" in repr(BERTScoreReward(idf=CORPUS, rescale_baseline=0.5))
    assert "idf=<1 weights>" in repr(BERTScoreReward(idf={5: 1.0}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": "F1"}, "'f1', 'precision' or 'recall'"),
        ({"idf": True}, "idf=dataset"),
        ({"idf": None}, "idf=dataset"),
        ({"idf": HEART}, "idf=dataset"),
        ({"idf": []}, "at least one reference text"),
        ({"idf": [None, " "]}, "at least one reference text"),
        ({"idf": [HEART, 7]}, r"idf\[1\]"),
        ({"idf": {}}, "0 weights"),
        ({"idf": {5: -1.0}}, "0 or more"),
        ({"idf": {5: float("nan")}}, "finite"),
        ({"idf": {5: float("inf")}}, "finite.* got float inf for 5"),
        ({"idf": {5: 1e300}}, r"finite.* got float 1e\+300"),
        ({"idf": {5: 10**400}}, "finite.* got int 1000"),
        ({"idf": {5: None}}, "finite.* got NoneType None for 5"),
        ({"idf": {5: "1.0"}}, "finite.* got str '1.0' for 5"),
        ({"idf": {"a": 1.0}}, r"by token id \(an int\).* got str 'a' as a token id"),
        ({"idf": {5.5: 1.0}}, "got float 5.5 as a token id"),
        ({"idf": defaultdict(lambda: float("inf"), {5: 1.0})}, "got float inf for all others"),
        ({"idf": defaultdict(lambda: float("nan"), {5: 1.0})}, "got float nan for all others"),
        ({"idf": defaultdict(lambda: -1, {5: 1.0})}, "got int -1 for all others"),
        ({"idf": defaultdict(list, {5: 1.0})}, r"got list \[\] for all others"),
        ({"rescale_baseline": 1.0}, "below 1"),
        ({"rescale_baseline": float("nan")}, "below 1"),
        ({"rescale_baseline": "en"}, "below 1"),
        ({"no_text": "skip"}, "'zero' or 'none'"),
        ({"scorer": 7}, "a Scorer"),
    ],
)
def test_an_argument_that_cannot_be_is_refused_at_once(options, message):
    with pytest.raises(InputError, match=message):
        BERTScoreReward(**options)


@pytest.mark.parametrize("token", [-1, 10**6])
def test_weights_for_tokens_that_there_are_not_are_refused(scorer, token):
    reward = BERTScoreReward(scorer, idf={token: 1.0})
    with pytest.raises(InputError, match="the tokenizer's"):
        reward(completions=[HEART], reference=[HEART])


def test_it_leaves_a_semantic_reward_on_its_scorer_the_pass_that_keeps_no_vectors(tiny_folder):
    scorer = Scorer(tiny_folder, backend="packed", device="cpu", dtype="float32")
    rewards = [SemanticReward(scorer), BERTScoreReward(scorer)]
    assert not scorer._engine.shares
    rewards.append(SemanticReward(scorer, name="another"))
    assert scorer._engine.shares
