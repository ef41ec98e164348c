"""RoBERTa, XLM-R and ModernBERT: packed hidden states are those of Hugging Face's own padded models."""

from __future__ import annotations

import random
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from fastreward.encoders.architecture import architecture_of
from fastreward.encoders.checkpoint import load_checkpoint
from fastreward.encoders.packed import PackedEncoder
from fastreward.errors import (
    BackendUnavailableError,
    CheckpointError,
    InputError,
    UnsupportedArchitectureError,
)
from fastreward.ops.linear import Linear
from fastreward.ops.scaled_linear import ScaledLinear, scaled_linear_available
from fastreward.packing import pack
from fastreward.scorer import Scorer
from fastreward.tokenization import Tokenizer

CPU = torch.device("cpu")
LENGTHS = [3, 512, 1, 17, 17, 17, 2, 64, 1, 257, 128]
VOCABULARY_SIZE = 100
PADDING = 1  # of the RoBERTa-type checkpoints

CONFIGS = {
    "roberta": {"family": "Roberta"},
    "roberta, one layer of three heads": {
        "family": "Roberta",
        "num_hidden_layers": 1,
        "num_attention_heads": 3,
        "hidden_size": 48,
    },
    "roberta, padding id 0": {"family": "Roberta", "pad_token_id": 0, "max_position_embeddings": 513},
    "xlm-r": {"family": "XLMRoberta", "num_hidden_layers": 3},
    "camembert": {"family": "Camembert"},
    "modernbert": {"family": "ModernBert", "num_hidden_layers": 4, "local_attention": 16},
    "modernbert, odd window": {"family": "ModernBert", "num_hidden_layers": 2, "local_attention": 7},
    "modernbert, last layer local": {
        "family": "ModernBert",
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "local_attention": 32,
    },
    "modernbert, other angles": {
        "family": "ModernBert",
        "num_hidden_layers": 2,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 500.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        },
    },
    "modernbert, biases": {
        "family": "ModernBert",
        "norm_bias": True,
        "mlp_bias": True,
        "attention_bias": True,
    },
    "modernbert, head of 64": {"family": "ModernBert", "hidden_size": 128, "num_attention_heads": 2},
}
ONE_OF_EACH = ["roberta", "xlm-r", "modernbert"]


def ragged_ids(lengths=LENGTHS):
    rng = random.Random(0)
    return [[rng.randrange(VOCABULARY_SIZE) for _ in range(length)] for length in lengths]


def encoder_of(folder, device=CPU, dtype=torch.float32, **options):
    return PackedEncoder(load_checkpoint(folder), device, dtype, **options)


@pytest.mark.parametrize("batch_invariant", [False, True])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_packed_hidden_states_are_those_of_the_padded_huggingface_model(
    tiny_checkpoint, huggingface_hidden, device, config, batch_invariant
):
    folder = tiny_checkpoint(**config)
    encoder = encoder_of(folder, device, batch_invariant=batch_invariant)
    hidden = encoder.hidden(pack(ragged_ids(), device)).cpu()
    expected = torch.cat(huggingface_hidden(folder, ragged_ids()))
    torch.testing.assert_close(hidden, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("family", ["Bert", "XLMRoberta", "ModernBert"])
def test_the_first_layers_alone_are_huggingface_s_layer_by_layer(tiny_checkpoint, device, family, count):
    transformers = pytest.importorskip("transformers")
    local = {"local_attention": 16} if family == "ModernBert" else {}
    folder = tiny_checkpoint(family=family, num_hidden_layers=4, **local)
    hidden = encoder_of(folder, device, num_layers=count).hidden(pack(ragged_ids(), device)).cpu()
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    owner, name = (model, "layers") if family == "ModernBert" else (model.encoder, "layer")
    setattr(owner, name, getattr(owner, name)[:count])
    with torch.no_grad():
        one_by_one = [model(torch.tensor([ids])).last_hidden_state[0] for ids in ragged_ids()]
    torch.testing.assert_close(hidden, torch.cat(one_by_one), atol=1e-4, rtol=0)


def test_modernbert_at_two_thousand_tokens(tiny_checkpoint, huggingface_hidden, device):
    folder = tiny_checkpoint(
        family="ModernBert", num_hidden_layers=3, local_attention=128, max_position_embeddings=2048
    )
    token_ids = ragged_ids([2048, 1, 700, 129, 2047])
    hidden = encoder_of(folder, device).hidden(pack(token_ids, device)).cpu()
    for got, ids in zip(hidden.split([len(ids) for ids in token_ids]), token_ids, strict=True):
        (expected,) = huggingface_hidden(folder, [ids])
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["roberta", "xlm-r"])
def test_positions_begin_behind_the_padding_id_wherever_a_text_stands_in_the_pack(
    tiny_checkpoint, huggingface_hidden, device, name
):
    folder = tiny_checkpoint(**CONFIGS[name])
    text = [5, 6, 7, 8, 9]
    (expected,) = huggingface_hidden(folder, [text])
    encoder = encoder_of(folder, device)
    for before in ([], [[2] * 500], [[3], [], [4] * 17]):
        hidden = encoder.hidden(pack([*before, text, [2, 3]], device)).cpu()
        start = sum(map(len, before))
        torch.testing.assert_close(hidden[start : start + len(text)], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("text", [[5, PADDING, 6, 7], [PADDING], [PADDING, PADDING, 5], [5, 6, PADDING]])
def test_a_padding_token_in_a_text_takes_no_position_as_in_roberta(
    tiny_checkpoint, huggingface_hidden, device, text
):
    folder = tiny_checkpoint(family="XLMRoberta")
    token_ids = [[9, 8, 7], text, [6, 5]]
    hidden = encoder_of(folder, device).hidden(pack(token_ids, device)).cpu()
    expected = torch.cat(huggingface_hidden(folder, token_ids))
    torch.testing.assert_close(hidden, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "positions"), [("roberta", 512), ("roberta, padding id 0", 512), ("modernbert", 512)]
)
def test_the_longest_text_is_what_the_positions_hold(tiny_checkpoint, name, positions):
    assert load_checkpoint(tiny_checkpoint(**CONFIGS[name])).architecture.max_positions == positions


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_weights_may_lie_under_the_prefix_of_a_model_with_a_head(tiny_checkpoint, huggingface_hidden, name):
    folder = tiny_checkpoint(**CONFIGS[name], with_head=True)
    token_ids = ragged_ids([5, 9])
    hidden = encoder_of(folder).hidden(pack(token_ids, CPU))
    expected = torch.cat(huggingface_hidden(folder, token_ids))
    torch.testing.assert_close(hidden, expected, atol=1e-4, rtol=0)


# CLS pooling


CLS = {**CONFIGS, "bert": {"family": "Bert"}, "bert, no layer": {"family": "Bert", "num_hidden_layers": 0}}


@pytest.mark.parametrize("batch_invariant", [False, True])
@pytest.mark.parametrize("config", CLS.values(), ids=CLS)
def test_cls_vectors_are_those_of_huggingface_also_among_empty_texts(
    tiny_checkpoint, huggingface_hidden, device, config, batch_invariant
):
    folder = tiny_checkpoint(**config)
    texts = [[], *ragged_ids([3, 1, 300, 17, 17, 40]), [], [5]]
    vectors = encoder_of(folder, device, pooling="cls", batch_invariant=batch_invariant).embed(
        pack(texts, device)
    )
    first = [hidden[0] for hidden in huggingface_hidden(folder, [ids for ids in texts if ids])]
    expected = torch.zeros(len(texts), vectors.shape[1])
    expected[[bool(ids) for ids in texts]] = F.normalize(torch.stack(first))
    torch.testing.assert_close(vectors.cpu(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["Bert", "XLMRoberta", "ModernBert"])
def test_cls_pooling_computes_its_last_layer_for_the_first_tokens_alone(tiny_checkpoint, monkeypatch, family):
    rows = {}
    check = Linear._check
    monkeypatch.setattr(Linear, "_check", lambda layer, x: check(layer, x) or rows.update({layer: len(x)}))
    encoder = encoder_of(tiny_checkpoint(family=family, num_hidden_layers=2), pooling="cls")
    encoder.embed(pack(ragged_ids([30, 20, 50]), CPU))
    inner, last = encoder._layers
    assert {rows[part] for part in (inner.qkv, inner.attention_output, inner.up, inner.down)} == {100}
    assert rows[last.qkv] == 100  # keys and values
    assert {rows[part] for part in (last.query, last.attention_output, last.up, last.down)} == {3}


def test_hidden_states_of_a_cls_encoder_are_complete(tiny_checkpoint, huggingface_hidden, device):
    folder = tiny_checkpoint(pooling={"pooling_mode": "cls"})
    hidden = encoder_of(folder, device).hidden(pack(ragged_ids(), device)).cpu()
    expected = torch.cat(huggingface_hidden(folder, ragged_ids()))
    torch.testing.assert_close(hidden, expected, atol=1e-4, rtol=0)


# Precision, invariance and options


RELATIVE_ERROR = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_every_precision_is_near_the_huggingface_model(tiny_checkpoint, huggingface_hidden, precision, name):
    device, dtype = precision
    folder = tiny_checkpoint(**{**CONFIGS[name], "hidden_size": 128, "intermediate_size": 256})
    hidden = encoder_of(folder, device, dtype).hidden(pack(ragged_ids(), device)).cpu().double()
    expected = torch.cat(huggingface_hidden(folder, ragged_ids())).double()
    error = (hidden - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert error <= RELATIVE_ERROR[dtype]


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_bits_do_not_depend_on_the_batch_where_that_is_asked_for(tiny_checkpoint, precision, name, pooling):
    device, dtype = precision
    encoder = encoder_of(
        tiny_checkpoint(**CONFIGS[name]), device, dtype, pooling=pooling, batch_invariant=True
    )
    texts = ragged_ids([300, 40, 40, 9, 1])
    together = encoder.embed(pack(texts, device))
    backwards = encoder.embed(pack(texts[::-1], device)).flip(0)
    alone = torch.cat([encoder.embed(pack([text], device)) for text in texts])
    assert torch.equal(together, backwards)
    assert torch.equal(together, alone)


@pytest.mark.parametrize("count", [0, 3, -1])
def test_a_number_of_layers_that_the_encoder_has_not_is_refused(tiny_checkpoint, count):
    with pytest.raises(InputError, match=rf"num_layers from 1 to 2, .* got {count}\. Pass fewer"):
        encoder_of(tiny_checkpoint(), num_layers=count)


def test_an_attention_that_cannot_run_here_is_refused_with_the_remedy(tiny_checkpoint):
    with pytest.raises(BackendUnavailableError, match=r"varlen.*None"):
        encoder_of(tiny_checkpoint(), attention="varlen")
    with pytest.raises(InputError, match="triton, flash, varlen, sdpa"):
        encoder_of(tiny_checkpoint(), attention="eager")


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("family", ["Bert", "XLMRoberta"])
def test_the_fused_blocks_give_the_same_vectors(tiny_checkpoint, family, pooling):
    folder = tiny_checkpoint(family=family)
    batch = pack(ragged_ids(), CPU)
    fused = encoder_of(folder, pooling=pooling, fused_mlp=True).embed(batch)
    torch.testing.assert_close(fused, encoder_of(folder, pooling=pooling).embed(batch), atol=1e-5, rtol=0)


def test_the_fused_blocks_are_refused_for_an_encoder_that_has_others(tiny_checkpoint):
    with pytest.raises(InputError, match=r"got modernbert in float32\. Pass fused_mlp=False"):
        encoder_of(tiny_checkpoint(family="ModernBert"), fused_mlp=True)


def test_eight_bit_products_are_refused_on_a_cpu_with_the_reason(tiny_checkpoint):
    with pytest.raises(BackendUnavailableError, match=r"float8_e4m3fn.*Pass dtype='bfloat16'"):
        encoder_of(tiny_checkpoint(), dtype=torch.float8_e4m3fn)


# Reading config.json


MODERNBERT = {
    "model_type": "modernbert",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "max_position_embeddings": 512,
}


def test_modernbert_s_older_configuration_says_the_same_as_the_newer_one(tmp_path):
    older = {
        **MODERNBERT,
        "global_attn_every_n_layers": 3,
        "local_attention": 128,
        "global_rope_theta": 160000.0,
        "local_rope_theta": 10000.0,
        "norm_eps": 1e-05,
    }
    newer = {
        **MODERNBERT,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 160000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    }
    path = tmp_path / "config.json"
    assert architecture_of(older, path) == architecture_of(newer, path)
    assert architecture_of(older, path).windows == (None, 64, 64, None)
    assert architecture_of(older, path).thetas == (160000.0, 10000.0, 10000.0, 160000.0)


def rope(kind="full_attention", **entries):
    return {"rope_parameters": {kind: {"rope_theta": 1e4, **entries}}}


UNSUPPORTED = {
    "activation": {"hidden_activation": "silu"},
    "fewer kinds than layers": {"layer_types": ["full_attention"]},
    "no kind": {"layer_types": []},
    "another kind": {"layer_types": ["chunked_attention"] * 4},
    "scaling, which is merged into both kinds": {"rope_scaling": {"type": "yarn", "factor": 4.0}},
    "global angles": rope(rope_type="yarn"),
    "local angles": rope("sliding_attention", rope_type="linear"),
    "angles by their older name": rope(type="yarn"),
    "angles that stretch": rope(factor=4.0),
    "angles of a third kind": rope("chunked_attention"),
    "one type of angles for all": {"rope_parameters": {"rope_type": "yarn", "rope_theta": None}},
    "one base for all": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
}


@pytest.mark.parametrize("change", UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_what_modernbert_may_ask_for_and_this_encoder_does_not_do_is_named(tmp_path, change):
    ((key, value),) = change.items()
    path = tmp_path / "config.json"
    with pytest.raises(UnsupportedArchitectureError) as caught:
        architecture_of({**MODERNBERT, **change}, path)
    expected, received, remedy = caught.value.args
    assert expected.startswith(f"{key} of ") and expected.endswith(f" in {path}")  # noqa: PT018
    assert (received, remedy) == (repr(value), "Choose another encoder.")


@pytest.mark.parametrize(
    "rotary",
    [
        {},
        {"full_attention": None, "sliding_attention": {}},
        {"rope_type": "default", "rope_theta": None},
        {"full_attention": {"rope_type": "default"}, "rope_theta": None},
    ],
    ids=str,
)
def test_rope_parameters_that_ask_for_nothing_mean_the_defaults(tmp_path, rotary):
    path = tmp_path / "config.json"
    got = architecture_of({**MODERNBERT, "rope_parameters": rotary}, path)
    assert got == architecture_of(MODERNBERT, path)
    assert got.thetas == (160000.0, 10000.0, 10000.0, 160000.0)


BERT = {**MODERNBERT, "model_type": "bert"}
ROBERTA = {**MODERNBERT, "model_type": "roberta", "max_position_embeddings": 514}
SIZES = ["hidden_size", "intermediate_size", "num_attention_heads", "vocab_size", "max_position_embeddings"]
COUNT = "a whole number of 1 or more"
OUT_OF_RANGE = [
    *((config, key, value, COUNT) for config in (BERT, MODERNBERT) for key in SIZES for value in (0, -5)),
    (BERT, "num_hidden_layers", -1, "a whole number of 0 or more"),
    (BERT, "layer_norm_eps", -1e-12, "a positive number"),
    (ROBERTA, "pad_token_id", -1, "a whole number of 0 or more"),
    (ROBERTA, "max_position_embeddings", 2, "a whole number of 3 or more"),
    (MODERNBERT, "num_hidden_layers", 0, COUNT),
    (MODERNBERT, "num_hidden_layers", -1, COUNT),
    (MODERNBERT, "global_attn_every_n_layers", 0, COUNT),
    (MODERNBERT, "local_attention", 0, COUNT),
    (MODERNBERT, "local_attention", -5, COUNT),
    (MODERNBERT, "global_rope_theta", -1, "a positive number"),
    (MODERNBERT, "local_rope_theta", 0, "a positive number"),
    (MODERNBERT, "norm_eps", float("nan"), "a positive number"),
    (MODERNBERT, "norm_eps", float("inf"), "a positive number"),
]
OF_ANOTHER_TYPE = [
    *((MODERNBERT, key, value, COUNT) for key in SIZES for value in ("much", 1.5, True, None, [1])),
    (MODERNBERT, "local_attention", "much", COUNT),
    (MODERNBERT, "norm_eps", "much", "a positive number"),
    (MODERNBERT, "global_rope_theta", "much", "a positive number"),
    (MODERNBERT, "local_rope_theta", True, "a positive number"),
    (MODERNBERT, "mlp_bias", "false", "true or false"),
    (MODERNBERT, "layer_types", 3, "a list of strings"),
    (MODERNBERT, "layer_types", "full_attention", "a list of strings"),
    (MODERNBERT, "layer_types", [["full_attention"]] * 4, "a list of strings"),
    (MODERNBERT, "rope_parameters", "default", "an object"),
    (MODERNBERT, "rope_parameters", [], "an object"),
]


def assert_refused(config, path, expected, received):
    with pytest.raises(CheckpointError) as caught:
        architecture_of(config, path)
    assert caught.value.args == (f"{expected} in {path}", repr(received), "Download or save the file again.")


@pytest.mark.parametrize(
    ("config", "key", "value", "expected"),
    OUT_OF_RANGE + OF_ANOTHER_TYPE,
    ids=[f"{config['model_type']} {key} {value}" for config, key, value, _ in OUT_OF_RANGE + OF_ANOTHER_TYPE],
)
def test_a_setting_that_is_not_what_it_should_be_is_named(tmp_path, config, key, value, expected):
    assert_refused({**config, key: value}, tmp_path / "config.json", f"{key} as {expected}", value)


@pytest.mark.parametrize("kind", ["full_attention", "sliding_attention"])
def test_angles_that_are_not_what_they_should_be_are_named(tmp_path, kind):
    path = tmp_path / "config.json"
    config = {**MODERNBERT, "rope_parameters": {kind: "default"}}
    assert_refused(config, path, f"{kind} as an object", "default")
    for theta in ("much", 0, -1e4, True, float("inf")):
        config = {**MODERNBERT, **rope(kind, rope_theta=theta)}
        assert_refused(config, path, "rope_theta as a positive number", theta)


# From texts


SENTENCES = [
    "Il cuore pompa il sangue in tutto il corpo, perché è un muscolo.",
    "Gli enzimi abbassano l'energia di attivazione di una reazione.",
    "The heart pumps blood through the body.",
    "Enzymes lower the activation energy; they are not used up!",
    "La velocità è 12 m/s, l'accelerazione 9,81 m/s².",
]


def write_tokenizer(folder, family):
    """Train a tokenizer of the family's own kind on the sentences and write it over the folder's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    if family == "ModernBert":
        names = {"cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "unk": "[UNK]"}
        tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=list(names.values()))
    else:
        names = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>"}
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        special = list(names.values())
        trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=special, unk_token="<unk>")
    tokenizer.train_from_iterator(SENTENCES * 20, trainer)
    frame = [(names[part], tokenizer.token_to_id(names[part])) for part in ("cls", "sep")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{names['cls']} $A {names['sep']}", special_tokens=frame
    )
    named = {f"{part}_token": token for part, token in names.items()}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **named).save_pretrained(folder)


@pytest.mark.parametrize("prompt", [None, "", "passage: "])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("family", ["XLMRoberta", "ModernBert"])
def test_scores_are_those_of_sentence_transformers(tiny_checkpoint, family, pooling, prompt):
    """As with multilingual-e5 (mean, prompts), bge-m3 (first token) and gte-modernbert (first token)."""
    library = pytest.importorskip("sentence_transformers")
    folder = tiny_checkpoint(
        family=family,
        vocab_size=400,
        pooling={"pooling_mode": pooling},
        prompts={"query": "query: ", "passage": "passage: "},
        default_prompt_name="query",
    )
    write_tokenizer(folder, family)
    texts = [*SENTENCES, "", "Il cuore " * 200, "<pad> <s> [SEP] è"]
    vectors = Scorer(folder, device="cpu", dtype="float32", prompt=prompt).embed(texts)
    asked = {} if prompt is None else {"prompt": prompt}
    expected = library.SentenceTransformer(str(folder), device="cpu").encode(
        texts, normalize_embeddings=True, convert_to_tensor=True, **asked
    )
    torch.testing.assert_close(vectors, expected, atol=1e-5, rtol=0)


# 8 bits


def spearman(first, second):
    ranks = torch.stack([values.argsort().argsort() for values in (first, second)])
    return torch.corrcoef(ranks.double())[0, 1].item()


def pairwise_cosines(vectors):
    first, second = torch.triu_indices(len(vectors), len(vectors), offset=1)
    return (vectors[first] * vectors[second]).sum(dim=1)


def test_eight_bit_products_keep_the_order_of_scores(minilm_folder, varied_texts, monkeypatch):
    """By the definition of `ScaledLinear` in PyTorch; MiniLM is narrower than what it is made for."""
    from fastreward.encoders import packed, weights

    checkpoint = load_checkpoint(minilm_folder)
    texts = Tokenizer.from_file(checkpoint.tokenizer_file, max_length=128)(varied_texts[:200])
    exact = encoder_of(minilm_folder).embed(pack(texts, CPU))
    monkeypatch.setattr(packed, "scaled_linear_available", lambda device, width: None)
    monkeypatch.setattr(weights, "ScaledLinear", partial(ScaledLinear, backend="torch"))
    rounded = encoder_of(minilm_folder, dtype=torch.float8_e4m3fn).embed(pack(texts, CPU))
    expected, got = pairwise_cosines(exact), pairwise_cosines(rounded)
    assert spearman(expected, got) >= 0.995
    assert (expected - got).abs().max() <= 0.1
    assert not torch.equal(expected, got)


@pytest.mark.skipif(
    scaled_linear_available(torch.device("cuda" if torch.cuda.is_available() else "cpu"), 768) is not None,
    reason="needs an NVIDIA GPU of compute capability 8.9 or more",
)
@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("width", [768, 1024])
def test_eight_bit_tensor_cores_keep_the_order_of_scores(tiny_checkpoint, width, pooling):
    """At the widths of bge-base and bge-m3. By the definition in PyTorch rho is 0.998 or more."""
    folder = tiny_checkpoint(hidden_size=width, intermediate_size=4 * width, num_attention_heads=width // 64)
    cuda = torch.device("cuda", torch.cuda.current_device())
    batch = pack(ragged_ids(list(range(1, 41))), cuda)
    exact = encoder_of(folder, cuda, pooling=pooling).embed(batch)
    encoder = encoder_of(folder, cuda, torch.float8_e4m3fn, pooling=pooling)
    rounded = encoder.embed(batch)
    assert {type(layer.up) for layer in encoder._layers} == {ScaledLinear}
    assert (encoder.dtype, encoder.hidden(batch).dtype) == (torch.bfloat16, torch.bfloat16)
    expected, got = pairwise_cosines(exact).cpu(), pairwise_cosines(rounded).cpu()
    assert spearman(expected, got) >= 0.995
    assert (expected - got).abs().max() <= 0.05
    assert not torch.equal(expected, got)
