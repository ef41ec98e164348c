"""Ids by the word cache are those of the tokenizer behind it, whatever the text and whatever is known."""

import functools
import importlib.util
import itertools
import json
import random
import struct
import sys
import threading
import tracemalloc
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from fastreward.errors import InputError
from fastreward.separation import WHITESPACE, find_separation
from fastreward.word_cache import WordCache

FUZZED_TEXTS = 20_000  # over all tokenizers; `python benchmarks/bench_tokenization.py --fuzz N` has no limit
BLOCK = 4096  # texts that are looked up together
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SPECIAL_PIECES = ["<s>", "<pad>", "</s>", "<unk>"]
WORDS = ["the", "heart", "pumps", "blood", "##s", "##umps", "boom"]
SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "bench_tokenization.py"


@functools.cache
def bench_tokenization():
    """The benchmark as a module: it draws the texts where tokenizers trip."""
    spec = importlib.util.spec_from_file_location("bench_tokenization", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_tokenization"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


# --------------------------------------------------------------------------- tokenizers


def characters():
    """Characters that get ids of their own, so that no difference between two texts hides in [UNK]."""
    script = bench_tokenization()
    drawn = {*script.MARKS, *script.JOINERS, *script.SPECIAL_CASE, *script.CHINESE, *"".join(script.WORDS)}
    ranges = (range(0x21, 0x250), range(0x300, 0x480), range(0x1100, 0x1200), range(0x2010, 0x2100))
    drawn |= set(map(chr, itertools.chain(*ranges)))
    made_of = {part for c in drawn for part in unicodedata.normalize("NFD", c.lower())}
    return sorted((drawn | made_of) - set(WHITESPACE))


@functools.cache
def vocabulary():
    tokens = [*SPECIAL, *characters(), *(f"##{c}" for c in characters()), *WORDS]
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}


def bert(normalizer="bert", pre_tokenizer=None, added=(), **settings):
    tokenizer = Tokenizer(models.WordPiece(vocabulary(), unk_token="[UNK]"))
    if normalizer is not None:
        own = normalizer == "bert"
        tokenizer.normalizer = normalizers.BertNormalizer(**settings) if own else normalizer
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.add_tokens(list(added))
    return tokenizer


# As in SentencePiece's own tables: kinds of whitespace, controls that go, ligatures, letters composed.
TABLE = {
    **dict.fromkeys(set(WHITESPACE) - set("\x0b\x1c\x1d\x1e\x1f \x85"), " "),
    **dict.fromkeys("\x0b\x1c\x1d\x1e\x1f\x01", ""),
    **{"\u200b": " ", "▁": " ", "ﬁ": "fi", "½": "1⁄2", "e\u0301": "é", "a\u0301": "á", "\u00a8": " \u0308"},
    **{"\u0600": "N", "\ufeff": "", "K": "K", "ａ": "a"},
}


def charsmap(table):
    """Write a table as SentencePiece does: a double array over the bytes of the keys, then the values.

    A unit holds its label in the lowest byte, bit 8 if a key ends there, and from bit 10 on the distance to
    its children; the value of a key is the unit at label 0.
    """
    tree, values = {}, b""
    for key, value in table.items():
        node = tree
        for byte in key.encode():
            node = node.setdefault(byte, {})
        node[0] = len(values)
        values += value.encode() + b"\0"
    units, taken, bases = [0] * 2**13, {0}, set()

    def place(node, unit):
        free = (b for b in range(1, 2**13 - 256) if not any(b ^ label in taken for label in node))
        base = next(b for b in free if b not in bases)
        bases.add(base)
        taken.update(base ^ label for label in node)
        units[unit] |= (unit ^ base) << 10 | (0 in node) << 8
        for label, child in node.items():
            units[base ^ label] = child | 1 << 31 if label == 0 else label
        for label, child in node.items():
            if label:
                place(child, base ^ label)

    place(tree, 0)
    return struct.pack(f"<I{len(units)}I", 4 * len(units), *units) + values


@functools.cache
def pieces():
    """A Unigram vocabulary, trained on a few sentences and given every character."""
    model = Tokenizer(models.Unigram())
    model.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace()])
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=SPECIAL_PIECES, unk_token="<unk>")
    model.train_from_iterator(["the heart pumps blood through the body, and the heart beats"] * 20, trainer)
    vocab = dict(map(tuple, json.loads(model.to_str())["model"]["vocab"]))
    rest = {c: -12.0 - number / 1e4 for number, c in enumerate(("▁", *characters())) if c not in vocab}
    return [*vocab.items(), *rest.items(), ("▁boom", -9.0), ("<mask>", 0.0)]


def metaspace(prepend_scheme="always", **settings):
    return pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme, **settings)


def collapsing(*steps, into="▁"):
    last = (normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), into))
    return normalizers.Sequence([*steps, *last])


def unigram(normalizer, pre_tokenizer, **settings):
    tokenizer = Tokenizer(models.Unigram(pieces(), unk_id=3, byte_fallback=False, **settings))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    mask = AddedToken("<mask>", lstrip=True, special=True, normalized=True)
    tokenizer.add_special_tokens([*SPECIAL_PIECES, mask])
    return tokenizer


def table():
    return normalizers.Precompiled(charsmap(TABLE))


def split_and_marked():
    return pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace()])


NFD, NFKC, LOWER = normalizers.NFD, normalizers.NFKC, normalizers.Lowercase
ADDED = (
    AddedToken("heart", single_word=True, normalized=False),
    AddedToken("<x>", lstrip=True, rstrip=True),
    AddedToken("È", normalized=True),
    AddedToken("pumps blood", normalized=False),
    AddedToken("[U-1]", normalized=False),
)

TOKENIZERS = {
    "BERT": bert,
    "cased": lambda: bert(lowercase=False),
    "cased, no accents": lambda: bert(lowercase=False, strip_accents=True),
    "accents": lambda: bert(strip_accents=False),
    "no clean-up": lambda: bert(clean_text=False),
    "Chinese as it is": lambda: bert(handle_chinese_chars=False),
    "added tokens": lambda: bert(added=ADDED),
    "added Chinese": lambda: bert(handle_chinese_chars=False, added=[AddedToken("脏将", normalized=False)]),
    "no normalizer": lambda: bert(None),
    "lower-cased first": lambda: bert(
        normalizers.Sequence([LOWER(), normalizers.BertNormalizer(lowercase=False)])
    ),
    "steps": lambda: bert(normalizers.Sequence([NFD(), normalizers.StripAccents(), LOWER()])),
    "NFC": lambda: bert(normalizers.Sequence([normalizers.NFC(), LOWER()])),
    "NFKC, Whitespace": lambda: bert(NFKC(), pre_tokenizers.Whitespace()),
    "Nmt, punctuation": lambda: bert(
        normalizers.Sequence([normalizers.Nmt(), normalizers.NFKD(), normalizers.Strip()]),
        pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(), pre_tokenizers.Digits()]
        ),
    ),
    "XLM-R": lambda: unigram(table(), split_and_marked()),
    "XLM-R, lower-cased": lambda: unigram(normalizers.Sequence([LOWER(), table()]), split_and_marked()),
    "XLM-R, no table": lambda: unigram(NFKC(), split_and_marked()),
    "spaces marked": lambda: unigram(collapsing(table()), metaspace()),
    "spaces marked and collapsed into one": lambda: unigram(collapsing(table(), into=" "), metaspace()),
}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]()


@pytest.fixture(params=["BERT", "XLM-R"])
def one_of_each(request):
    return TOKENIZERS[request.param]()


def ids_of(tokenizer, texts):
    """What the tokenizer gives, each text by itself; lone surrogates are replaced first."""
    valid = [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in texts]
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in valid]


def assert_exact(cache, tokenizer, texts):
    for text, ids, expected in zip(texts, cache.encode(texts), ids_of(tokenizer, texts), strict=True):
        assert ids.tolist() == expected, ascii(text)


class Counting:
    """A tokenizer that notes what it is asked to tokenise."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self.calls = []

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def encode_batch_fast(self, texts, **settings):
        self.calls.append(texts)
        return self._tokenizer.encode_batch_fast(texts, **settings)


# --------------------------------------------------------------------------- exact


def test_fuzzed_texts_have_the_ids_of_the_tokenizer(tokenizer):
    texts = bench_tokenization().fuzzed_texts(seed=0)
    cache = WordCache(tokenizer, max_bytes=300_000)  # it overflows again and again
    for _ in range(5):
        assert_exact(cache, tokenizer, list(itertools.islice(texts, FUZZED_TEXTS // len(TOKENIZERS) // 5)))


def test_any_text_has_the_ids_of_the_tokenizer(tokenizer):
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies
    cache = WordCache(tokenizer)
    script = bench_tokenization()
    parts = st.sampled_from([*WHITESPACE, *script.MARKS, *script.JOINERS, *script.WORDS, "\r\n"]) | st.text()

    @hypothesis.settings(deadline=None, database=None, max_examples=60)
    @hypothesis.given(texts=st.lists(st.lists(parts, max_size=8).map("".join), max_size=3))
    def exact(texts):
        assert_exact(cache, tokenizer, texts)

    exact()


TRAPS = [
    # Deleted by the clean-up, so that no whitespace is left.
    *(("BERT", f"heart{c}s") for c in "\x0b\x0c\x1c\x1d\x1e\x1f\x85"),
    # Whitespace to Python alone.
    *(("no clean-up", f"heart{c}s") for c in "\x1c\x1d\x1e\x1f"),
    ("added tokens", "the pumps blood s"),  # an added token of two words
    # One grapheme with the whitespace: the table's entry for the first part replaces all of it.
    ("XLM-R", "a\xa0\u0301b"),
    ("XLM-R", "a\xa0\u0e33"),
    ("XLM-R", "\u0600 b"),
    ("XLM-R, lower-cased", "\u0600 B"),
    ("XLM-R", "a\x1cb"),
    # Stands for a space itself; or a space to Python, not to the table.
    ("spaces marked, ▁ kept", "a ▁b"),
    ("spaces marked", "a\x85b"),
    ("spaces marked, newline kept", "a\nb"),
]


@pytest.mark.parametrize(("name", "text"), TRAPS, ids=ascii)
def test_a_text_whose_ids_are_not_those_of_its_words_is_tokenised_whole(name, text):
    kept = {c: into for c, into in TABLE.items() if c not in "▁\n"}
    fewer = {
        "spaces marked, ▁ kept": lambda: unigram(
            collapsing(normalizers.Precompiled(charsmap(kept))), metaspace()
        ),
        "spaces marked, newline kept": lambda: unigram(
            collapsing(normalizers.Precompiled(charsmap(kept))), metaspace()
        ),
    }
    tokenizer = (TOKENIZERS | fewer)[name]()
    (expected,) = ids_of(tokenizer, [text])
    assert list(itertools.chain(*ids_of(tokenizer, text.split()))) != expected
    cache = WordCache(tokenizer)
    assert_exact(cache, tokenizer, [text, *text.split(), text])


def test_pieces_are_not_cut_where_an_added_token_or_a_word_boundary_would_be_lost():
    tokenizer = TOKENIZERS["added tokens"]()
    texts = ["[U-1]x", "a[U-1].", "heart_s", "heart.s", "_heart", "[SEP]s", "the[U-1", "<x>.", "-heart-"]
    assert ids_of(tokenizer, ["heart_s"]) != ids_of(tokenizer, ["heart _s"])
    assert_exact(WordCache(tokenizer), tokenizer, texts)
    cut = find_separation(tokenizer).pieces
    assert cut("a.b_c-[U-1]<x>\n,") == ["a", ".", "b_c-[U-1]<x>", "\n", ","]


def test_a_word_that_holds_the_delimiter_is_told_from_it():
    tokenizer = bert(added=[AddedToken("|boom|", normalized=False)], normalizer=NFKC())
    delimiter, token_id = find_separation(tokenizer).delimiter
    assert ids_of(tokenizer, [delimiter]) == [[token_id]]
    word = delimiter.strip()
    texts = [f"the {word} heart {word}.{word} blood", f"{word}, {word} s", f"pumps (x){word}"]
    assert_exact(WordCache(tokenizer), tokenizer, texts)


def test_the_delimiter_and_its_neighbours_may_make_an_added_token():
    tokenizer = bert(NFKC())
    delimiter, _ = find_separation(tokenizer).delimiter
    tokenizer.add_tokens([AddedToken(f"heart{delimiter}blood", normalized=False)])
    assert find_separation(tokenizer).delimiter[0] == delimiter
    assert_exact(WordCache(tokenizer), tokenizer, ["the heart blood", f"heart{delimiter}blood"])


def test_words_are_tokenised_one_by_one_where_no_delimiter_is_found():
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "1": 1, "##2": 2, "2": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    assert find_separation(tokenizer).delimiter is None
    assert_exact(WordCache(tokenizer), tokenizer, ["1 2 12 222", "12 x", ""])


@pytest.mark.parametrize("length", [63, 64, 65, 99, 100, 101, 1000])
def test_long_words_are_exact_known_or_not(one_of_each, length):
    cache = WordCache(one_of_each)
    for _ in range(2):
        assert_exact(cache, one_of_each, ["heart" * (length // 5) + "s" * (length % 5), "ab." * length])


def test_no_text_no_word_and_many_texts(one_of_each):
    cache = WordCache(one_of_each)
    assert cache.encode([]) == []
    assert_exact(cache, one_of_each, ["", " \n\t", "\x01", "a"])
    texts = [f"heart {number} " * (number % 3) for number in range(BLOCK + 7)]
    assert_exact(cache, one_of_each, texts)
    assert_exact(cache, one_of_each, texts[:BLOCK])


def test_ids_are_int32_in_arrays_of_one_dimension(one_of_each):
    cache = WordCache(one_of_each)
    for _ in range(2):
        for ids in cache.encode(["heart blood", "", "a\x1cb"]):
            assert (ids.dtype, ids.ndim) == (np.int32, 1)


# --------------------------------------------------------------------------- what reaches the tokenizer


def test_known_words_do_not_reach_the_tokenizer(one_of_each):
    counting = Counting(one_of_each)
    cache = WordCache(counting)
    cache.encode(["the heart, the blood", "pumps"])
    counting.calls.clear()
    assert_exact(cache, one_of_each, ["blood pumps heart,", "the"])
    assert counting.calls == []


def test_words_that_are_not_known_reach_it_once_and_in_one_call(one_of_each):
    counting = Counting(one_of_each)
    cache = WordCache(counting)
    cache.encode(["the"])
    counting.calls.clear()
    cache.encode(["the heart pumps", "heart blood", "a\x1cb", "pumps"])
    (call,) = counting.calls
    assert sorted("".join(call).count(word) for word in ("the", "heart", "pumps", "blood")) == [0, 1, 1, 1]
    assert call[0] == "a\x1cb"


def test_a_new_word_of_known_pieces_does_not_reach_the_tokenizer():
    counting = Counting(bert())
    cache = WordCache(counting)
    cache.encode(["heart , blood ( ) 心 脏"])
    counting.calls.clear()
    assert_exact(cache, counting, ["(heart,blood)心脏"])
    assert [text for call in counting.calls for text in call] == []


def test_the_hit_rate_counts_repeated_words(one_of_each):
    cache = WordCache(one_of_each)
    cache.encode(["heart"])
    assert cache.hit_rate(["heart heart blood", "heart"]) == 0.75
    assert cache.hit_rate([]) == 0.0


# --------------------------------------------------------------------------- memory


def distinct_words(count):
    return [f"w{number:x}é" for number in range(count)]


def test_memory_is_bounded_while_distinct_words_go_through(one_of_each):
    words, max_bytes = distinct_words(40_000), 1 << 20
    cache = WordCache(one_of_each, max_bytes=max_bytes)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for start in range(0, len(words), 2000):
            cache.encode([" ".join(words[start : start + 2000])])
            assert cache.size_bytes <= max_bytes
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before <= max_bytes
    assert cache.size_bytes > max_bytes / 4  # and it is made use of
    assert 0.02 < cache.hit_rate(words) < 0.5
    assert_exact(
        cache, one_of_each, [" ".join(words[start : start + 9]) for start in range(0, len(words), 2000)]
    )


def test_a_word_that_is_asked_for_stays(one_of_each):
    cache = WordCache(one_of_each, max_bytes=200_000)
    words = distinct_words(8000)
    for start in range(0, len(words), 200):
        cache.encode(["heart blood.", *words[start : start + 200]])
    assert cache.hit_rate(words) < 0.5
    assert cache.hit_rate(["heart blood."]) == 1.0


@pytest.mark.parametrize("max_bytes", [0, 1, 1000])
def test_a_cache_without_room_is_exact(one_of_each, max_bytes):
    cache = WordCache(one_of_each, max_bytes=max_bytes)
    texts = list(itertools.islice(bench_tokenization().fuzzed_texts(seed=1), 50))
    for _ in range(2):
        assert_exact(cache, one_of_each, texts)
        assert cache.size_bytes <= max_bytes


def test_very_long_words_are_not_kept(one_of_each):
    cache = WordCache(one_of_each)
    before = cache.size_bytes
    cache.encode(["x" * 100_000])
    assert cache.size_bytes < before + 1000


def test_a_negative_bound_is_refused():
    with pytest.raises(InputError, match=r"cache size of 0 bytes or more, got -1\. Pass 0 to keep nothing"):
        WordCache(bert(), max_bytes=-1)


# --------------------------------------------------------------------------- threads


def test_threads_get_exact_ids_from_a_cache_that_overflows(one_of_each):
    texts = list(itertools.islice(bench_tokenization().fuzzed_texts(seed=2), 400))
    expected = dict(zip(texts, ids_of(one_of_each, texts), strict=True))
    cache = WordCache(one_of_each, max_bytes=60_000)
    start = threading.Barrier(6)

    def work(seed):
        drawn = random.Random(seed)
        start.wait()
        for _ in range(15):
            some = drawn.choices(texts, k=40)
            for text, ids in zip(some, cache.encode(some), strict=True):
                assert ids.tolist() == expected[text], ascii(text)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert cache.size_bytes <= 60_000


# --------------------------------------------------------------------------- which tokenizers


def test_python_cuts_at_these_characters_and_no_others():
    cuts = [c for c in map(chr, range(sys.maxunicode + 1)) if len(f"a{c}b".split()) == 2]
    assert "".join(cuts) == WHITESPACE


def sampling():
    if not hasattr(models.Unigram, "alpha"):
        pytest.skip("this version of tokenizers never draws")
    return unigram(table(), split_and_marked(), alpha=0.5, nbest_size=8)


def byte_level():
    tokenizer = Tokenizer(models.BPE({"a": 0}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    return tokenizer


def padding():
    tokenizer = bert()
    tokenizer.enable_padding(length=8)
    return tokenizer


def truncating():
    tokenizer = bert()
    tokenizer.enable_truncation(8)
    return tokenizer


class OwnNormalizer:
    def normalize(self, normalized):
        normalized.lowercase()


def python_normalizer():
    tokenizer = bert()
    tokenizer.normalizer = normalizers.Normalizer.custom(OwnNormalizer())
    return tokenizer


def bert_split(*steps):
    return bert(pre_tokenizer=pre_tokenizers.Sequence(list(steps)) if len(steps) > 1 else steps[0])


WHOLE_WORDS = pre_tokenizers.WhitespaceSplit()
REFUSED = {
    "byte-level BPE": (byte_level, "a BPE model"),
    "a model that draws": (sampling, "draws at random"),
    "padding": (padding, "pads or truncates"),
    "truncation": (truncating, "pads or truncates"),
    "a part in Python": (python_normalizer, "a part of an unknown kind"),
    "no pre-tokenizer": (
        lambda: Tokenizer(models.WordPiece(vocabulary(), unk_token="[UNK]")),
        "the pre-tokenizer None",
    ),
    "whitespace kept": (lambda: bert_split(pre_tokenizers.Punctuation()), "the pre-tokenizer Punctuation"),
    "whitespace dropped too late": (
        lambda: bert_split(pre_tokenizers.Punctuation(), WHOLE_WORDS),
        "Punctuation → WhitespaceSplit",
    ),
    "the first word is another": (
        lambda: bert_split(WHOLE_WORDS, metaspace("first")),
        "WhitespaceSplit → Metaspace",
    ),
    "only the first space is marked": (lambda: unigram(collapsing(), metaspace("first")), "Metaspace"),
    "marked spaces stay together": (lambda: unigram(collapsing(), metaspace(split=False)), "Metaspace"),
    "every space is a token": (lambda: unigram(table(), metaspace()), "marked and not collapsed"),
    "no normalizer, every space is a token": (lambda: unigram(None, metaspace()), "marked and not collapsed"),
    "spaces at the end are tokens": (
        lambda: unigram(
            normalizers.Sequence([normalizers.Strip(right=False), normalizers.Replace(Regex(" {2,}"), "▁")]),
            metaspace(),
        ),
        "marked and not collapsed",
    ),
    "a replacement": (lambda: bert(normalizers.Replace("a", " ")), "the normalizer Replace"),
    "spaces become something else": (
        lambda: bert(collapsing(), pre_tokenizers.WhitespaceSplit()),
        "the normalizer Replace",
    ),
    "the table comes late": (
        lambda: unigram(normalizers.Sequence([NFKC(), table()]), split_and_marked()),
        "the normalizer Precompiled",
    ),
    "a prefix": (lambda: bert(normalizers.Prepend("x")), "the normalizer Prepend"),
    "an added token of two words": (lambda: bert(added=[AddedToken("a b", normalized=True)]), "'a b'"),
    "an added token that becomes two": (lambda: bert(added=[AddedToken("心", normalized=True)]), "' 心 '"),
    "an added token that vanishes": (lambda: bert(added=[AddedToken("\u200b", normalized=True)]), "''"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_tokenizer_whose_texts_cannot_be_cut_is_refused(name):
    make, reason = REFUSED[name]
    with pytest.raises(InputError) as caught:
        WordCache(make())
    assert reason in caught.value.received
    assert "cut at whitespace" in caught.value.expected
    assert "without a word cache" in caught.value.remedy


def test_a_cut_at_a_space_must_hold_when_it_is_tried():
    tokenizer = bert(normalizers.Precompiled(charsmap({" ": "x"})))
    with pytest.raises(InputError, match="does not cut at a space"):
        WordCache(tokenizer)


def test_words_that_could_share_a_grapheme_with_a_space_are_known_as_such():
    # The table turns a space and the rest of its cluster into "_": what extends a space vanishes with it.
    normalizer = normalizers.Precompiled(charsmap({" ": "_"}))
    planes = (range(0xD800), range(0xE000, 0x20000), range(0xE0000, 0xE1000))
    characters = [c for c in map(chr, itertools.chain(*planes)) if not c.isspace()]
    lines = normalizer.normalize_str("".join(f"a {c}\n" for c in characters)).split("\n")
    joining = {c for c, line in zip(characters, lines[:-1], strict=True) if line == "a_"}
    may_join = find_separation(TOKENIZERS["XLM-R"]()).may_join
    assert len(joining) > 1000
    assert [ascii(c) for c in joining if not may_join(f"{c}a")] == []
    assert not any(may_join(word) for word in ("heart", "né", "(x)", "心", "Ωmega", "½", "10⁻⁷", "😀"))


def test_letters_that_precede_a_cluster_are_known_as_such():
    regex = pytest.importorskip("regex")  # it has Unicode's table of grapheme breaks
    may_join = find_separation(TOKENIZERS["XLM-R"]()).may_join
    preceding = regex.findall(r"\p{GCB=Prepend}", "".join(map(chr, range(sys.maxunicode + 1))))
    assert len(preceding) > 10
    assert [ascii(c) for c in preceding if not may_join(f"a{c}")] == []


def test_the_table_of_these_tests_reads_as_it_was_written():
    normalizer = table()
    for key, value in TABLE.items():
        assert normalizer.normalize_str(key) == value, ascii(key)
    assert normalizer.normalize_str("heart e\u0301b") == "heart éb"
