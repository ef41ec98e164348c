import gc
import importlib.util
import itertools
import pickle
import random
import threading
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastreward import batching
from fastreward.encoders.checkpoint import load_checkpoint
from fastreward.encoders.packed import PackedEncoder
from fastreward.errors import BackendUnavailableError, InputError
from fastreward.ops.pooled_cosine import POOLINGS
from fastreward.packing import pack
from fastreward.rewards.semantic import SemanticReward
from fastreward.scorer import Scorer, ScorerStats
from fastreward.tokenization import Tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:Texts longer than")

CPU = torch.device("cpu")
FP32 = {"backend": "packed", "device": "cpu", "dtype": "float32"}
FP32_ROUNDING = 2e-6  # what a score may move by in fp32 when other texts stand beside it

# Largest error, RMS error and rank correlation against sentence-transformers in fp32.
BOUNDS = {
    torch.float32: (1e-5, 1e-5, 1 - 1e-6),
    torch.bfloat16: (2e-2, 3e-3, 0.999),
    torch.float16: (2e-2, 3e-3, 0.999),
}
TEXTS = ["the heart", "pumps blood", "insulin lowers glucose", "energy", "", "body " * 30]


@pytest.fixture
def scorer(tiny_folder):
    return Scorer(tiny_folder, **FP32)


def close(actual, expected, atol=FP32_ROUNDING):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)
    return True


def spent(scorer, work):
    """Do some work and say what it cost."""
    before = scorer.stats
    work()
    return scorer.stats - before


def sentence_transformer(folder, **options):
    library = pytest.importorskip("sentence_transformers")
    return library.SentenceTransformer(str(folder), device="cpu", **options)


# The same scores as sentence-transformers


@pytest.fixture(scope="session")
def theirs(minilm_folder, minilm, huggingface_hidden, varied_texts):
    """Unit vectors of the varied texts by sentence-transformers in fp32; without it, by what it does."""
    if importlib.util.find_spec("sentence_transformers"):
        model = sentence_transformer(minilm_folder)
        model.max_seq_length = 512
        return model.encode(varied_texts, convert_to_tensor=True, normalize_embeddings=True).cpu()
    token_ids = minilm(**FP32, max_seq_length=512).tokenizer(varied_texts)
    by_length = sorted(range(1000), key=lambda row: len(token_ids[row]))
    vectors = torch.empty(1000, 384)
    for first in range(0, 1000, 40):
        rows = by_length[first : first + 40]
        hidden = huggingface_hidden(minilm_folder, [token_ids[row] for row in rows])
        vectors[rows] = F.normalize(torch.stack([states.mean(dim=0) for states in hidden]))
    return vectors


def test_the_varied_texts_are_varied(minilm, varied_texts):
    lengths = [len(ids) for ids in minilm(**FP32, max_seq_length=512).tokenizer(varied_texts)]
    assert len(set(varied_texts)) == 1000
    assert {"", " "} < set(varied_texts)
    assert (min(lengths), max(lengths)) == (2, 512)
    assert sum(length > 256 for length in lengths) >= 10
    assert max(map(ord, "".join(varied_texts))) > 0xFFFF


def test_scores_are_the_cosines_of_sentence_transformers(minilm, theirs, varied_texts, precision):
    device, dtype = precision
    pointed_at = torch.arange(1000) * 7 % 125  # eight completions share a reference
    expected = (theirs * theirs[pointed_at]).sum(dim=1)
    scorer = minilm(device=device, dtype=dtype, max_seq_length=512)
    scores = scorer.score(varied_texts, [varied_texts[row] for row in pointed_at])
    largest, rms, correlation = BOUNDS[dtype]
    assert (scores - expected).abs().max() <= largest
    assert (scores - expected).square().mean().sqrt() <= rms
    assert spearman(scores, expected) >= correlation


def spearman(left, right):
    ranks = torch.stack([values.argsort().argsort() for values in (left, right)])
    return torch.corrcoef(ranks.double())[0, 1]


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken"])
@pytest.mark.parametrize("transformer_path", ["", "0_Transformer"])
def test_a_checkpoints_own_settings_give_the_vectors_of_sentence_transformers(
    tiny_checkpoint, pooling, transformer_path
):
    folder = tiny_checkpoint(
        pooling={"pooling_mode": pooling}, transformer_path=transformer_path, max_seq_length=12
    )
    expected = sentence_transformer(folder).encode(TEXTS, convert_to_tensor=True)
    close(Scorer(folder, **FP32).embed(TEXTS), expected, atol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_another_pooling_may_be_chosen_than_the_checkpoints_own(tiny_checkpoint, pooling):
    name = "lasttoken" if pooling == "last" else pooling
    own = Scorer(tiny_checkpoint(pooling={"pooling_mode": name}), **FP32)
    other = tiny_checkpoint(pooling={"pooling_mode": "cls" if pooling == "mean" else "mean"})
    assert torch.equal(Scorer(other, pooling=pooling, **FP32).embed(TEXTS), own.embed(TEXTS))
    assert not torch.equal(Scorer(other, **FP32).embed(TEXTS), own.embed(TEXTS))


def test_a_checkpoint_without_a_normalize_module_gives_the_same_vectors(tiny_checkpoint, scorer):
    folder = tiny_checkpoint(modules=("Transformer", "Pooling"))
    assert torch.equal(Scorer(folder, **FP32).embed(TEXTS), scorer.embed(TEXTS))


@pytest.mark.parametrize("max_seq_length", [3, 20, 512])
def test_another_limit_cuts_as_sentence_transformers_does(tiny_folder, max_seq_length):
    model = sentence_transformer(tiny_folder)
    model.max_seq_length = max_seq_length
    texts = [*TEXTS, "blood " * 600]
    scorer = Scorer(tiny_folder, max_seq_length=max_seq_length, **FP32)
    assert scorer.max_seq_length == max_seq_length
    close(scorer.embed(texts), model.encode(texts, convert_to_tensor=True), atol=1e-5)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({"prompt_name": "body"}, {"prompt_name": "body"}),
        ({"prompt": "blood: "}, {"prompt": "blood: "}),
        ({"prompt": ""}, {"prompt": ""}),
    ],
)
def test_prompts_are_those_of_sentence_transformers(tiny_checkpoint, ours, theirs):
    folder = tiny_checkpoint(
        prompts={"query": "query: ", "body": "body: "}, default_prompt_name="query", max_seq_length=20
    )
    expected = sentence_transformer(folder).encode(TEXTS, convert_to_tensor=True, **theirs)
    close(Scorer(folder, **ours, **FP32).embed(TEXTS), expected, atol=1e-5)


@pytest.mark.parametrize("cased", [True, False])
@pytest.mark.parametrize("text", ["The HEART Pumps", "Heart [SEP] Blood", "ΣΟΒΑΔΟΣ ΟΔΟΣ"])
def test_lower_casing_is_that_of_sentence_transformers(tiny_checkpoint, text, cased):
    folder = tiny_checkpoint(cased=cased, do_lower_case=True)
    expected = sentence_transformer(folder).encode([text], convert_to_tensor=True)
    close(Scorer(folder, **FP32).embed([text]), expected, atol=1e-5)


# A score does not depend on its neighbours


def test_a_score_alone_in_a_batch_and_in_any_order_is_the_same_within_rounding(minilm, varied_texts, device):
    completions, references = varied_texts[:500], varied_texts[500:550] * 10
    scorer = minilm(device=device, dtype="float32", reference_cache_bytes=0)
    scores = scorer.score(completions, references)
    order = random.Random(1).sample(range(500), 500)
    shuffled = scorer.score([completions[row] for row in order], [references[row] for row in order])
    close(shuffled, scores[order])
    for row in order[:25]:
        close(scorer.score([completions[row]], [references[row]]), scores[row : row + 1])


@pytest.mark.parametrize("onednn", [True, False], ids=["oneDNN", "plain"])
@pytest.mark.parametrize(
    ("name", "pooling"), [("minilm", "mean"), *(("tiny", pooling) for pooling in POOLINGS)]
)
def test_batch_invariant_scores_are_the_same_to_the_bit(
    minilm_folder, tiny_checkpoint, varied_texts, monkeypatch, precision, name, pooling, onednn
):
    if not onednn:  # as on a machine without it, where a product's bits may depend on how many rows it has
        monkeypatch.setattr("fastreward.ops.linear.onednn_available", lambda dtype: False)
    sizes = {"hidden_size": 48, "num_attention_heads": 3, "intermediate_size": 100}
    folder = minilm_folder if name == "minilm" else tiny_checkpoint(**sizes)
    device, dtype = precision
    invariant = {"batch_invariant": True, "reference_cache_bytes": 0, "pooling": pooling}
    scorer, narrow, wide = (
        Scorer(folder, device=device, dtype=dtype, max_batch_tokens=tokens, **invariant)
        for tokens in (None, 300, 10_000)
    )
    completions, references = varied_texts[:12], varied_texts[12:24]
    scores = scorer.score(completions, references)
    assert torch.equal(scorer.score(completions[::-1], references[::-1]).flip(0), scores)
    assert torch.equal(narrow.score(completions, references), scores)
    assert torch.equal(wide.score(completions, references), scores)
    for row in range(0, 12, 3):
        assert torch.equal(scorer.score([completions[row]], [references[row]]), scores[row : row + 1])
    others = scorer.score(completions, references[::-1])
    each = scorer.score(completions * 2, [*references, *references[::-1]])
    assert torch.equal(each, torch.cat([scores, others]))
    best = scorer.score(completions, list(zip(references, references[::-1], strict=True)))
    assert torch.equal(best, torch.maximum(scores, others))


# Long texts


@pytest.fixture
def long_texts():
    words = ["the", "heart", "pumps", "blood", "body"]  # each of them one token
    return [
        " ".join(itertools.islice(itertools.cycle(words), length)) for length in (0, 1, 9, 10, 11, 20, 37)
    ]


def test_truncation_is_said_once(tiny_folder):
    scorer = Scorer(tiny_folder, max_seq_length=4, **FP32)
    with pytest.warns(UserWarning, match=r"longer than 4 tokens are truncated, 1 of .* long_texts='chunk'"):
        scorer.embed(["heart " * 9])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scorer.embed(["blood " * 9])
    assert scorer.stats.truncated_texts == 2


def test_the_warning_points_to_the_line_outside_of_this_library(tiny_folder):
    for call in (
        lambda scorer: scorer.embed(["heart " * 9]),
        lambda scorer: scorer.score(["heart"], ["heart " * 9]),
        lambda scorer: SemanticReward(scorer)(completions=["heart " * 9], reference=["heart"]),
    ):
        scorer = Scorer(tiny_folder, max_seq_length=4, **FP32)
        with pytest.warns(UserWarning, match="are truncated") as caught:
            call(scorer)
        assert caught[0].filename == __file__


def test_truncated_texts_are_counted_and_score_as_their_beginnings(tiny_folder, long_texts):
    scorer = Scorer(tiny_folder, max_seq_length=12, **FP32)  # ten tokens of text
    beginnings = [" ".join(text.split()[:10]) for text in long_texts]
    references = ["blood"] * len(long_texts)
    cost = spent(
        scorer, lambda: close(scorer.score(long_texts, references), scorer.score(beginnings, references))
    )
    assert cost.truncated_texts == 3


def test_a_chunked_text_is_the_mean_of_its_windows_weighted_by_tokens(
    tiny_folder, huggingface_hidden, long_texts
):
    scorer = Scorer(tiny_folder, max_seq_length=12, long_texts="chunk", **FP32)
    expected = []
    for text in long_texts:
        words = text.split()
        windows = [" ".join(words[start : start + 10]) for start in range(0, max(1, len(words)), 10)]
        hidden = huggingface_hidden(tiny_folder, scorer.tokenizer(windows))
        vectors = F.normalize(torch.stack([states.mean(dim=0) for states in hidden]))
        weights = torch.tensor([float(max(1, len(window.split()))) for window in windows])
        expected.append(F.normalize(weights @ vectors, dim=0))
    close(scorer.embed(long_texts), torch.stack(expected), atol=1e-5)
    close(
        scorer.score(long_texts, ["heart"] * 7), torch.stack(expected) @ scorer.embed(["heart"])[0], atol=1e-5
    )


def test_chunking_cuts_nothing_and_counts_every_window(tiny_folder, long_texts):
    scorer = Scorer(tiny_folder, max_seq_length=12, long_texts="chunk", **FP32)
    cost = spent(scorer, lambda: scorer.embed(long_texts))
    assert (cost.encoded_texts, cost.truncated_texts) == (7, 0)
    windows = 1 + 1 + 1 + 1 + 2 + 2 + 4
    assert cost.tokens == sum(len(text.split()) for text in long_texts) + 2 * windows


def test_a_short_text_is_the_same_in_both_modes(tiny_folder, scorer):
    chunking = Scorer(tiny_folder, long_texts="chunk", **FP32)
    close(chunking.embed(TEXTS), scorer.embed(TEXTS), atol=1e-6)
    close(chunking.score(TEXTS, TEXTS[::-1]), scorer.score(TEXTS, TEXTS[::-1]))


# Work that need not be done is not done


def test_what_is_alike_is_encoded_once(scorer):
    scores = scorer.score(["heart", "heart", "blood", "heart"], ["energy", "energy", "body", "body"])
    assert scores[0] == scores[1]
    lengths = [len(ids) for ids in scorer.tokenizer(["heart", "blood", "energy", "body"])]
    assert scorer.stats == ScorerStats(
        texts=8, unique_texts=4, encoded_texts=4, tokens=sum(lengths), reference_misses=2
    )


def test_a_reference_is_encoded_once_over_calls(scorer):
    first = scorer.score(["heart"], ["energy"])
    cost = spent(scorer, lambda: close(scorer.score(["heart", "blood"], ["energy", "body"])[:1], first))
    assert (cost.encoded_texts, cost.reference_hits, cost.reference_misses) == (3, 1, 1)


def test_a_reference_that_a_group_shares_scores_each_of_it_as_alone(scorer):
    group = scorer.score(TEXTS, ["blood"] * len(TEXTS))
    close(group, torch.cat([scorer.score([text], ["blood"]) for text in TEXTS]))
    assert scorer.stats.reference_misses == 1


def test_of_several_references_the_best_counts_and_the_text_is_encoded_once(scorer):
    choices = [["energy", "heart", "heart"], ("body",), "blood", TEXTS, ["blood", "energy"], "heart"]
    each = [
        max(scorer.score([text], [reference]).item() for reference in ([c] if isinstance(c, str) else c))
        for text, c in zip(TEXTS, choices, strict=True)
    ]
    cost = spent(scorer, lambda: close(scorer.score(TEXTS, choices), torch.tensor(each)))
    assert (cost.texts, cost.encoded_texts) == (len(TEXTS) + 14, len(TEXTS))


def test_scores_are_right_while_a_small_cache_drives_references_out(tiny_folder, scorer, varied_texts):
    small = Scorer(tiny_folder, reference_cache_bytes=1000, **FP32)
    rng = random.Random(0)
    for _ in range(20):
        references = rng.choices(varied_texts[:20], k=6)
        close(small.score(TEXTS, references), scorer.score(TEXTS, references))
    assert small.stats.reference_misses > 20 >= scorer.stats.reference_misses
    assert small.stats.reference_hits > 0


def test_stats_count_what_embed_encodes(scorer):
    scorer.embed(["heart", "heart", "blood"])
    tokens = sum(len(ids) for ids in scorer.tokenizer(["heart", "blood"]))
    assert scorer.stats == ScorerStats(texts=3, unique_texts=2, encoded_texts=2, tokens=tokens)


def test_nothing_to_score_is_nothing(scorer):
    assert scorer.score([], []).shape == (0,)
    assert scorer.embed([]).shape == (0, 32)
    assert scorer.stats == ScorerStats()


# Threads, processes, results


def test_eight_threads_score_as_one_and_encode_a_reference_once(tiny_folder, scorer, varied_texts):
    tasks = [(varied_texts[start : start + 12], varied_texts[:12]) for start in range(0, 96, 4)] * 2
    expected = [scorer.score(*task) for task in tasks]
    shared = Scorer(tiny_folder, **FP32)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda task: shared.score(*task), tasks))
    close(torch.stack(results), torch.stack(expected))
    assert shared.stats == scorer.stats
    assert shared.stats.reference_misses == 12


def test_a_scorer_pickles_to_its_arguments(tiny_folder):
    scorer = Scorer(tiny_folder, pooling="cls", prompt="query: ", max_seq_length=12, **FP32)
    scores = scorer.score(TEXTS, TEXTS[::-1])
    pickled = pickle.dumps(scorer)
    copy = pickle.loads(pickled)
    assert len(pickled) < 2000
    assert copy.stats == ScorerStats()
    assert torch.equal(copy.score(TEXTS, TEXTS[::-1]), scores)
    assert repr(copy) == repr(scorer)


def test_copies_share_one_engine_and_its_references_but_count_for_themselves(scorer):
    pickled = pickle.dumps(scorer)
    copies = [pickle.loads(pickled) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        engines = set(pool.map(lambda copy: id(copy.tokenizer), copies))
    assert len(engines) == 1
    for copy in copies:
        copy.score(["heart"], ["a reference of this test alone"])
    assert sum(copy.stats.reference_misses for copy in copies) == 1
    assert [copy.stats.texts for copy in copies] == [2] * 8


def test_an_engine_outlives_the_copies_that_it_was_built_for(tiny_folder):
    pickled = pickle.dumps(Scorer(tiny_folder, max_seq_length=77, **FP32))  # the original is gone at once
    stats = []
    for _ in range(2):
        copy = pickle.loads(pickled)
        copy.score(["heart"], ["blood"])
        stats.append(copy.stats)
        del copy
        gc.collect()
    assert [each.reference_hits for each in stats] == [0, 1]


def test_an_engine_goes_with_the_last_scorer_that_was_made_with_it(tiny_folder):
    scorer = Scorer(tiny_folder, max_seq_length=78, **FP32)
    tokenizer = weakref.ref(scorer.tokenizer)
    del scorer
    gc.collect()
    assert tokenizer() is None


def test_vectors_have_unit_length_and_the_order_of_the_texts(scorer):
    vectors = scorer.embed([*TEXTS, *TEXTS[::-1]])
    close(vectors.norm(dim=1), torch.ones(2 * len(TEXTS)), atol=1e-6)
    assert torch.equal(vectors, torch.cat([vectors[: len(TEXTS)], vectors[: len(TEXTS)].flip(0)]))
    close(vectors[: len(TEXTS)], torch.cat([scorer.embed([text]) for text in TEXTS]))
    assert (vectors[0] - vectors[1]).abs().max() > 0.01


def test_results_are_fp32_on_the_cpu_and_vectors_where_they_are_wanted(tiny_folder, precision):
    device, dtype = precision
    scorer = Scorer(tiny_folder, device=device, dtype=dtype)
    for result in (scorer.score(TEXTS, TEXTS), scorer.embed(TEXTS), scorer.embed([]), scorer.score([], [])):
        assert (result.dtype, result.device) == (torch.float32, CPU)
    for texts in (TEXTS, []):
        assert scorer.embed(texts, device=device).device == device


def test_a_scorer_says_what_it_is(tiny_folder, precision):
    device, dtype = precision
    scorer = Scorer(tiny_folder, backend="packed", device=device, dtype=dtype, max_seq_length=40)
    assert (scorer.backend, scorer.device, scorer.dtype) == ("packed", device, dtype)
    assert (scorer.encoder_name, scorer.embedding_dim, scorer.max_seq_length) == (str(tiny_folder), 32, 40)
    assert str(tiny_folder) in repr(scorer)


def test_a_score_of_a_text_with_itself_is_one_and_never_more(minilm, varied_texts, precision):
    device, dtype = precision
    texts = varied_texts[:100]
    scores = minilm(device=device, dtype=dtype).score(texts, texts)
    assert scores.max() <= 1.0
    assert scores.min() >= 1.0 - BOUNDS[dtype][0]


# Tokenised in chunks, while batches are computed


@pytest.fixture
def in_small_chunks(monkeypatch):
    monkeypatch.setattr(batching, "MIN_CHUNK_CHARS", 40)
    monkeypatch.setattr(batching, "MIN_BATCH_TOKENS", 16)


@pytest.mark.usefixtures("in_small_chunks")
@pytest.mark.parametrize("long_texts", ["truncate", "chunk"])
def test_a_call_in_many_chunks_gives_what_it_gives_in_one(tiny_folder, long_texts, monkeypatch):
    texts = ["heart " * (n % 40) + f"{n}" for n in range(200)]
    arguments = {**FP32, "max_seq_length": 24, "long_texts": long_texts}
    scorer = Scorer(tiny_folder, **arguments)
    vectors, stats = scorer.embed(texts), scorer.stats
    monkeypatch.undo()
    whole = Scorer(tiny_folder, **arguments)
    close(vectors, whole.embed(texts), atol=2e-6)
    assert stats == whole.stats


@pytest.mark.usefixtures("in_small_chunks")
def test_an_error_in_a_late_chunk_is_raised_and_the_scorer_goes_on(tiny_folder, monkeypatch):
    scorer = Scorer(tiny_folder, **FP32)
    texts = ["heart " * n for n in range(40)]
    expected = scorer.embed(texts)
    content = Tokenizer.content

    def failing(tokenizer, part):
        if "" in part:  # the shortest, in the last part
            raise RuntimeError("no tokens today")
        return content(tokenizer, part)

    with monkeypatch.context() as patched:
        patched.setattr(Tokenizer, "content", failing)
        with pytest.raises(RuntimeError, match="no tokens today"):
            scorer.embed(texts)
    assert torch.equal(scorer.embed(texts), expected)


def test_an_error_in_the_encoder_leaves_no_thread_behind(tiny_folder, monkeypatch):
    monkeypatch.setattr(batching, "MIN_CHUNK_CHARS", 40)
    monkeypatch.setattr(batching, "MIN_BATCH_TOKENS", 16)
    scorer = Scorer(tiny_folder, **FP32)
    before = threading.active_count()

    def failing(batch):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(scorer._engine.encoder, "embed", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        scorer.embed(["heart " * n for n in range(40)])
    assert threading.active_count() == before


# All with all


def test_similarity_is_the_score_of_every_completion_with_every_reference(scorer, tiny_folder):
    completions, references = [*TEXTS, "the heart"], ["blood", "energy", "blood"]
    expected = torch.stack([scorer.score(completions, [reference] * 7) for reference in references], dim=1)
    similarity = scorer.similarity(completions, references)
    assert (similarity.dtype, similarity.device, similarity.shape) == (torch.float32, CPU, (7, 3))
    close(similarity, expected)
    assert torch.equal(similarity[:, 0], similarity[:, 2])
    cost = spent(scorer, lambda: scorer.similarity(completions, references))
    assert (cost.texts, cost.unique_texts, cost.reference_hits, cost.encoded_texts) == (10, 8, 2, 6)
    invariant = Scorer(tiny_folder, batch_invariant=True, **FP32)
    each = [invariant.score(completions, [reference] * 7) for reference in references]
    assert torch.equal(invariant.similarity(completions, references), torch.stack(each, dim=1))


def test_similarity_in_parts_is_the_same(scorer, monkeypatch):
    whole = scorer.similarity(TEXTS, TEXTS)
    for scores in (1, 17, 36):
        monkeypatch.setattr("fastreward.cosines.SCORES_AT_ONCE", scores)
        close(scorer.similarity(TEXTS, TEXTS), whole)
    assert scorer.similarity([], TEXTS).shape == (0, 6)
    assert scorer.similarity(TEXTS, []).shape == (6, 0)
    close(whole.diagonal(), torch.ones(6))


# Token ids in the place of strings


def content_ids(scorer, texts):
    return [ids[1:-1] for ids in scorer.tokenizer(texts)]


@pytest.mark.parametrize(
    "form",
    [
        list,
        tuple,
        lambda ids: np.array(ids, dtype=np.int32),
        lambda ids: np.array(ids, dtype=np.int64),
        lambda ids: torch.tensor(ids, dtype=torch.int32),
        lambda ids: torch.tensor(ids, dtype=torch.int64),
    ],
    ids=["list", "tuple", "int32 array", "int64 array", "int32 tensor", "int64 tensor"],
)
@pytest.mark.parametrize("long_texts", ["truncate", "chunk"])
def test_token_ids_score_as_the_strings_they_are_of(tiny_folder, form, long_texts):
    scorer = Scorer(tiny_folder, max_seq_length=20, long_texts=long_texts, **FP32)
    whole = Scorer(tiny_folder, **FP32)
    references = [text or "blood" for text in TEXTS[::-1]]
    ids, reference_ids = (list(map(form, content_ids(whole, texts))) for texts in (TEXTS, references))
    expected = scorer.score(TEXTS, references)
    for completions, others in (
        (ids, references),
        (TEXTS, [*reference_ids[:-1], form([5])]),
        (ids, reference_ids),
    ):
        scores = scorer.score(completions, others)
        close(scores[:-1], expected[:-1])
    close(scores, expected)
    close(scorer.embed(ids), scorer.embed(TEXTS))
    close(scorer.similarity(ids, references), scorer.similarity(TEXTS, references))
    ours, theirs = scorer.maxsim(ids, references), scorer.maxsim(TEXTS, references)
    close(ours.f1, theirs.f1, atol=1e-5)


def test_a_reference_of_ids_may_have_choices_and_what_is_alike_is_encoded_once(scorer):
    heart, blood, body = content_ids(scorer, ["heart", "blood", "body"])
    choices = [[heart, blood], np.array(body), (blood, torch.tensor(body))]
    expected = scorer.score(["energy"] * 3, [["heart", "blood"], "body", ["blood", "body"]])
    cost = spent(scorer, lambda: close(scorer.score([np.array([9]), [9], (9,)], choices)[:0], expected[:0]))
    assert (cost.texts, cost.encoded_texts, cost.reference_misses) == (8, 4, 3)
    close(scorer.score(["energy"] * 3, choices), expected)


def test_a_prompt_is_not_set_before_ids(tiny_folder, scorer):
    prompted = Scorer(tiny_folder, prompt="query: ", **FP32)
    ids = content_ids(scorer, ["heart", "query: heart"])
    close(prompted.embed(ids), scorer.embed(["heart", "query: heart"]))
    close(prompted.embed(ids[1:]), prompted.embed(["heart"]))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([[5], [5, 176]], r"token ids from 0 to 175 in texts\[1\], got 176 at place 1"),
        ([[5], torch.tensor([-1])], r"token ids from 0 to 175 in texts\[1\], got -1 at place 0"),
        ([[5], [2**70]], r"whole numbers as token ids in texts\[1\]"),
        ([[5], [5, 1.5]], r"whole numbers as token ids in texts\[1\], got float64"),
        ([[5], [5, [6]]], r"whole numbers as token ids in texts\[1\]"),
        ([np.array([0.5])], r"whole numbers as token ids in texts\[0\], got float64"),
        ([torch.ones(2, dtype=torch.bfloat16)], r"whole numbers as token ids in texts\[0\], got bfloat16"),
        ([np.array([True])], r"whole numbers as token ids in texts\[0\], got bool"),
        ([np.array([[5]])], r"a string in texts\[0\] \(or .* token ids\), got ndarray of 2 dimensions"),
        ([torch.tensor(5)], r"a string in texts\[0\] .*, got Tensor of 0 dimensions"),
        (["heart", [5]], r"strings alone or token ids alone as texts, got a string in texts\[0\] and ids in"),
        ([[], "heart"], r"strings alone or token ids alone as texts"),
    ],
)
def test_ids_that_are_none_are_named(scorer, texts, message):
    with pytest.raises(InputError, match=message):
        scorer.embed(texts)


def test_ids_of_a_reference_that_are_out_of_range_are_named(scorer):
    with pytest.raises(
        InputError, match=r"token ids from 0 to 175 in references\[1\]\[0\], got 999 at place 1"
    ):
        scorer.score(["heart", "blood"], [[5], [[5, 999], [6]]])


# Options of the encoder


def test_the_first_layers_alone_can_be_asked_for(tiny_folder):
    checkpoint = load_checkpoint(tiny_folder)
    scorer = pickle.loads(pickle.dumps(Scorer(tiny_folder, num_layers=1, **FP32)))
    first = PackedEncoder(checkpoint, CPU, torch.float32, num_layers=1)
    whole = PackedEncoder(checkpoint, CPU, torch.float32)
    batch = pack(scorer.tokenizer(TEXTS), CPU)
    close(scorer.embed(TEXTS), first.embed(batch))
    assert (scorer.embed(TEXTS) - whole.embed(batch)).abs().max() > 0.01


def test_the_attention_that_is_asked_for_runs_or_is_refused(tiny_folder):
    scorer = pickle.loads(pickle.dumps(Scorer(tiny_folder, attention="sdpa", **FP32)))
    assert scorer._engine.encoder.attention == "sdpa"
    with pytest.raises(BackendUnavailableError, match=r"attention='varlen'.*Pass attention=None"):
        Scorer(tiny_folder, attention="varlen", **FP32)


@pytest.mark.parametrize("name", ["num_layers", "max_seq_length", "max_batch_tokens", "max_bytes"])
@pytest.mark.parametrize("value", [0, -1, "2", 2.0, True])
def test_a_size_that_is_no_whole_number_from_1_is_named(tiny_folder, name, value):
    with pytest.raises(InputError, match=rf"{name} of 1 or more, got {value!r}\. Pass a whole number"):
        Scorer(tiny_folder, **{name: value}, **FP32)


@pytest.mark.parametrize("name", ["reference_cache_bytes", "recent_bytes", "word_cache_bytes"])
@pytest.mark.parametrize("value", [-1, "3", 1.5, None])
def test_a_number_of_bytes_that_is_none_is_named(tiny_folder, name, value):
    with pytest.raises(InputError, match=rf"{name} of 0 or more, got {value!r}\. Pass a whole number"):
        Scorer(tiny_folder, **{name: value}, **FP32)


@pytest.mark.parametrize("name", ["", "  "])
def test_an_empty_name_is_not_the_working_directory(name):
    with pytest.raises(InputError, match=r"an encoder's folder or its name on the hub, got '.*'\. Pass '\.'"):
        Scorer(name)


def test_a_device_for_vectors_that_is_none_is_named(scorer):
    with pytest.raises(InputError, match="a device such as 'cpu' or 'cuda:0', got 'tpu'"):
        scorer.embed(["heart"], device="tpu")
    with pytest.raises(BackendUnavailableError, match="cuda:99"):
        scorer.embed(["heart"], device="cuda:99")


def test_the_word_cache_can_be_left_out_and_changes_no_score(tiny_folder):
    with_cache, without = Scorer(tiny_folder, **FP32), Scorer(tiny_folder, word_cache_bytes=0, **FP32)
    assert with_cache.tokenizer.word_cache is not None
    assert without.tokenizer.word_cache is None
    assert torch.equal(with_cache.embed(TEXTS), without.embed(TEXTS))


def test_its_repr_shows_what_was_asked_for(tiny_folder):
    shown = repr(Scorer(tiny_folder, num_layers=1, batch_invariant=True, **FP32))
    assert shown == (
        f"Scorer(encoder={str(tiny_folder)!r}, backend='packed', device='cpu', dtype='float32', "
        "num_layers=1, batch_invariant=True)"
    )
