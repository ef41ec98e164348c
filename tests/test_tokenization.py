import json

import numpy as np
import pytest
import tokenizers

from fastreward.errors import CheckpointError, InputError
from fastreward.tokenization import Tokenizer


@pytest.fixture
def tokenizer_file(tiny_folder):
    return tiny_folder / "tokenizer.json"


@pytest.fixture
def cased_file(tiny_checkpoint):
    return tiny_checkpoint(cased=True) / "tokenizer.json"


@pytest.mark.parametrize("max_length", [3, 16, 256])
def test_ids_are_those_of_transformers(minilm_folder, varied_texts, max_length):
    transformers = pytest.importorskip("transformers")
    expected = transformers.AutoTokenizer.from_pretrained(minilm_folder)(
        varied_texts, truncation=True, max_length=max_length
    )
    tokenizer = Tokenizer.from_file(minilm_folder / "tokenizer.json", max_length=max_length)
    assert tokenizer(varied_texts) == expected["input_ids"]


def test_only_what_is_over_the_limit_is_cut(tokenizer_file):
    tokenizer = Tokenizer.from_file(tokenizer_file, max_length=5)
    assert tokenizer.max_content == 3
    (content,) = tokenizer.content(["heart blood body heart"])
    assert len(content) == 4
    cut = tokenizer.frame(content[:3]).tolist()
    assert tokenizer(["heart blood body heart", "heart blood body"]) == [cut, cut]


def test_an_empty_text_is_its_special_tokens(tokenizer_file):
    tokenizer = Tokenizer.from_file(tokenizer_file, max_length=5)
    cls, sep = tokenizer.frame([])
    assert tokenizer(["", " \n\t"]) == [[cls, sep], [cls, sep]]
    assert tokenizer([]) == []


@pytest.mark.parametrize("word_cache_bytes", [0, 1 << 20])
def test_content_and_frame_are_int32_arrays(tokenizer_file, word_cache_bytes):
    tokenizer = Tokenizer.from_file(tokenizer_file, max_length=64, word_cache_bytes=word_cache_bytes)
    cls, sep = tokenizer.frame([])
    for ids in tokenizer.content(["heart blood", "", "heart\x1cblood"]):
        framed = tokenizer.frame(ids)
        assert (ids.dtype, ids.ndim, framed.dtype, framed.ndim) == (np.int32, 1, np.int32, 1)
        for part in (ids, ids.tolist(), ids[:1], ids[::-1]):
            assert tokenizer.frame(part).tolist() == [cls, *part, sep]


@pytest.mark.parametrize(
    "settings", [{}, {"prompt": "query: "}, {"prompt": "a"}, {"lowercase": True}], ids=str
)
def test_ids_are_the_same_without_the_word_cache(cased_file, varied_texts, settings):
    without = Tokenizer.from_file(cased_file, max_length=64, word_cache_bytes=0, **settings)
    cached = Tokenizer.from_file(cased_file, max_length=64, **settings)
    assert without.word_cache is None
    assert cached.word_cache is not None
    expected = without(varied_texts)
    assert [cached(varied_texts), cached(varied_texts)] == [expected, expected]
    assert cached.word_cache.hit_rate(["heart blood"]) == 1.0


def test_why_there_is_no_word_cache_is_said(tokenizer_file):
    plain = tokenizers.Tokenizer.from_file(str(tokenizer_file))
    assert Tokenizer(plain, max_length=64).uncached_because is None
    assert "word_cache_bytes is 0" in Tokenizer(plain, max_length=64, word_cache_bytes=0).uncached_because
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    uncached = Tokenizer(plain, max_length=64)
    assert uncached.word_cache is None
    assert "marked and not collapsed" in uncached.uncached_because
    assert uncached(["heart"]) == [
        uncached.frame(plain.encode("heart", add_special_tokens=False).ids).tolist()
    ]


def test_a_negative_size_of_the_word_cache_is_refused(tokenizer_file):
    with pytest.raises(InputError, match=r"word_cache_bytes of 0 or more, got -1\. Pass 0 for no cache"):
        Tokenizer.from_file(tokenizer_file, max_length=64, word_cache_bytes=-1)


def test_padding_and_truncation_of_the_file_are_switched_off(tokenizer_file, tmp_path):
    plain = tokenizers.Tokenizer.from_file(str(tokenizer_file))
    plain.enable_padding(length=32)
    plain.enable_truncation(4)
    plain.save(str(tmp_path / "tokenizer.json"))
    texts = ["heart blood body heart", "heart"]
    changed, original = (
        Tokenizer.from_file(path, max_length=64) for path in (tmp_path / "tokenizer.json", tokenizer_file)
    )
    assert changed(texts) == original(texts)


def test_a_prompt_stands_before_every_text_and_counts_as_its_beginning(tokenizer_file):
    plain = Tokenizer.from_file(tokenizer_file, max_length=6)
    prompted = Tokenizer.from_file(tokenizer_file, max_length=6, prompt="query: ")
    texts = ["heart", "heart blood body energy", ""]
    assert prompted(texts) == plain(["query: " + text for text in texts])


def test_capitals_are_lowered_when_the_checkpoint_asks_for_it(cased_file):
    lowering = Tokenizer.from_file(cased_file, max_length=64, lowercase=True)
    keeping = Tokenizer.from_file(cased_file, max_length=64)
    assert lowering(["The HEART", "ΑΔ"]) == keeping(["the heart", "αδ"])
    assert keeping(["The HEART"]) != keeping(["the heart"])


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("heart \ud83d blood", "heart \ufffd blood"),
        ("\udc00\ud800", "\ufffd\ufffd"),
        ("a\ud83d", "a\ufffd"),
        ("\ud83e\udec0", "\U0001fac0"),  # two halves that belong together are a character
    ],
)
def test_a_lone_surrogate_counts_as_the_replacement_character(tokenizer_file, text, meaning):
    plain = tokenizers.Tokenizer.from_file(str(tokenizer_file))
    plain.normalizer = tokenizers.normalizers.Lowercase()  # BERT's own leaves the replacement character out
    tokenizer = Tokenizer(plain, max_length=64)
    assert tokenizer([text, "heart ❤️"]) == tokenizer([meaning, "heart ❤️"])


def test_a_limit_without_room_for_text_is_refused(tokenizer_file):
    with pytest.raises(InputError, match=r"beside 2 special tokens, got a maximum length of 2 tokens\. Pa"):
        Tokenizer.from_file(tokenizer_file, max_length=2)


@pytest.mark.parametrize("frame", ["[CLS] $A", "$A [SEP]", "$A"])
def test_special_tokens_may_stand_on_either_side_or_nowhere(tokenizer_file, frame):
    plain = tokenizers.Tokenizer.from_file(str(tokenizer_file))
    ids = [(token, plain.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    plain.post_processor = tokenizers.processors.TemplateProcessing(single=frame, special_tokens=ids)
    expected = plain.encode("heart blood").ids
    assert Tokenizer(plain, max_length=64)(["heart blood"]) == [expected]


def test_special_tokens_within_a_text_are_refused(tokenizer_file):
    plain = tokenizers.Tokenizer.from_file(str(tokenizer_file))
    ids = [("[CLS]", plain.token_to_id("[CLS]"))]
    plain.post_processor = tokenizers.processors.TemplateProcessing(single="$A [CLS] $A", special_tokens=ids)
    with pytest.raises(CheckpointError, match=r"special tokens before and after a text, got .* for "):
        Tokenizer(plain, max_length=64)


def test_a_missing_file_is_named_with_the_way_to_make_one(tmp_path):
    with pytest.raises(CheckpointError, match=rf"tokenizer\.json\), got none in {tmp_path}\. Save one there"):
        Tokenizer.from_file(tmp_path / "tokenizer.json", max_length=64)


@pytest.mark.parametrize("content", ["", "{", json.dumps({"model": {"type": "WordPiece"}})])
def test_a_damaged_file_is_named(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(CheckpointError, match=rf"a readable tokenizer\.json, got {path}: .*Download"):
        Tokenizer.from_file(path, max_length=64)
