import json
import random

import pytest
import torch
import torch.nn.functional as F

from fastreward.encoders.checkpoint import load_checkpoint
from fastreward.encoders.packed import INVARIANT_ROWS, PackedEncoder
from fastreward.errors import CheckpointError, UnsupportedArchitectureError
from fastreward.ops.linear import Linear
from fastreward.ops.pooled_cosine import POOLINGS
from fastreward.packing import pack

CPU = torch.device("cpu")
LENGTHS = [3, 512, 1, 17, 17, 17, 2, 64, 1, 257, 128]  # neighbours of equal length too
CONFIGS = {
    "two layers": {},
    "no layer": {"num_hidden_layers": 0},
    "one layer, one head": {"num_hidden_layers": 1, "num_attention_heads": 1, "hidden_size": 40},
    "three layers of 48 with 3 heads": {
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "hidden_size": 48,
        "intermediate_size": 100,
    },
    "odd sizes": {"num_attention_heads": 7, "hidden_size": 49, "intermediate_size": 33},
    "beyond the fused LayerNorm": {
        "num_hidden_layers": 1,
        "hidden_size": 1056,
        "num_attention_heads": 4,
    },
    "another epsilon": {"layer_norm_eps": 0.1},
}


def encoder_of(folder, device=CPU, dtype=torch.float32, **options):
    return PackedEncoder(load_checkpoint(folder), device, dtype, **options)


def ragged_ids(vocab_size, lengths=LENGTHS):
    rng = random.Random(0)
    return [[rng.randrange(vocab_size) for _ in range(length)] for length in lengths]


def assert_hidden_states_are_those_of_huggingface(encoder, folder, device, huggingface_hidden, token_ids):
    hidden = encoder.hidden(pack(token_ids, device)).cpu()
    expected = torch.cat(huggingface_hidden(folder, token_ids))
    torch.testing.assert_close(hidden, expected, atol=1e-4, rtol=0)


# RMS error by RMS of the values: each of about ten roundings in two layers adds 2^-9 (bf16) or 2^-12 (fp16).
RELATIVE_ERROR = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2.5e-3}


def test_hidden_states_of_every_precision_are_near_those_of_the_huggingface_model(
    tiny_checkpoint, huggingface_hidden, precision
):
    device, dtype = precision
    folder = tiny_checkpoint(hidden_size=128, num_attention_heads=4, intermediate_size=256)
    token_ids = ragged_ids(vocab_size=100)
    hidden = encoder_of(folder, device, dtype).hidden(pack(token_ids, device)).cpu().double()
    expected = torch.cat(huggingface_hidden(folder, token_ids)).double()
    error = (hidden - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert error <= RELATIVE_ERROR[dtype]


def test_batch_invariant_products_have_one_shape_whatever_the_batch(tiny_folder, monkeypatch):
    shapes, multiply = set(), Linear.__call__

    def watched(layer, x):
        shapes.add(len(x))
        return multiply(layer, x)

    monkeypatch.setattr(Linear, "__call__", watched)
    encoder = encoder_of(tiny_folder, batch_invariant=True)
    for lengths in ([3], LENGTHS):
        encoder.embed(pack(ragged_ids(100, lengths), CPU))
    assert shapes == {INVARIANT_ROWS["cpu"]}


@pytest.mark.parametrize("batch_invariant", [False, True])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_packed_hidden_states_are_those_of_the_padded_huggingface_model(
    tiny_checkpoint, huggingface_hidden, device, config, batch_invariant
):
    folder = tiny_checkpoint(**config)
    encoder = encoder_of(folder, device, batch_invariant=batch_invariant)
    token_ids = ragged_ids(vocab_size=100)
    assert_hidden_states_are_those_of_huggingface(encoder, folder, device, huggingface_hidden, token_ids)


def test_hidden_states_of_minilm_are_those_of_the_padded_huggingface_model(
    minilm_folder, huggingface_hidden, device
):
    token_ids = ragged_ids(vocab_size=30522)
    encoder = encoder_of(minilm_folder, device)
    assert_hidden_states_are_those_of_huggingface(
        encoder, minilm_folder, device, huggingface_hidden, token_ids
    )


@pytest.mark.parametrize("stored", [{"with_head": True}, {"max_shard_size": "20KB"}])
def test_weights_may_lie_under_a_prefix_or_in_shards(tiny_checkpoint, huggingface_hidden, stored):
    folder = tiny_checkpoint(**stored)
    token_ids = ragged_ids(vocab_size=100, lengths=[5, 9])
    assert_hidden_states_are_those_of_huggingface(
        encoder_of(folder), folder, CPU, huggingface_hidden, token_ids
    )


def test_the_variants_of_stored_weights_are_what_they_are_meant_to_be(tiny_checkpoint):
    from safetensors import safe_open

    with safe_open(tiny_checkpoint(with_head=True) / "model.safetensors", "pt") as weights:
        assert "bert.encoder.layer.0.output.dense.weight" in weights.keys()  # noqa: SIM118
    assert len(list(tiny_checkpoint(max_shard_size="20KB").glob("model-*.safetensors"))) > 1


PLAIN_POOLING = {
    "mean": lambda hidden: hidden.mean(dim=0),
    "cls": lambda hidden: hidden[0],
    "last": lambda hidden: hidden[-1],
    "max": lambda hidden: hidden.amax(dim=0),
}


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("config", ["two layers", "no layer", "beyond the fused LayerNorm"])
def test_vectors_are_the_pooled_hidden_states_at_unit_length(
    tiny_checkpoint, huggingface_hidden, device, config, pooling
):
    folder = tiny_checkpoint(**CONFIGS[config])
    token_ids = ragged_ids(vocab_size=100, lengths=[3, 1, 17, 17, 300, 40])
    pooled = torch.stack([PLAIN_POOLING[pooling](h) for h in huggingface_hidden(folder, token_ids)])
    vectors = encoder_of(folder, device, pooling=pooling).embed(pack(token_ids, device))
    torch.testing.assert_close(vectors.cpu(), F.normalize(pooled), atol=1e-5, rtol=0)


def test_a_score_is_the_cosine_of_the_vector_with_its_reference(tiny_folder, precision):
    device, dtype = precision
    encoder = encoder_of(tiny_folder, device, dtype)
    batch = pack(ragged_ids(vocab_size=100), device)
    references = torch.randn(4, encoder.hidden_size, generator=torch.Generator().manual_seed(0)).to(device)
    index = (torch.arange(len(batch.lengths)) % 4).to(device)
    expected = F.cosine_similarity(encoder.embed(batch), references[index])
    torch.testing.assert_close(encoder.cosine(batch, references, index), expected, atol=1e-6, rtol=0)


def test_a_text_without_tokens_is_the_zero_vector_and_scores_zero(tiny_folder, precision):
    device, dtype = precision
    encoder = encoder_of(tiny_folder, device, dtype)
    batch = pack([[], [5, 6], []], device)
    vectors = encoder.embed(batch)
    assert vectors.norm(dim=1).tolist() == pytest.approx([0.0, 1.0, 0.0], abs=1e-6)
    scores = encoder.cosine(batch, vectors[1:2].clone(), torch.zeros(3, dtype=torch.int64, device=device))
    assert scores.tolist() == pytest.approx([0.0, 1.0, 0.0], abs=1e-6)


def test_a_batch_without_texts_gives_nothing(tiny_folder, precision):
    device, dtype = precision
    encoder = encoder_of(tiny_folder, device, dtype)
    batch = pack([], device)
    assert encoder.hidden(batch).shape == (0, encoder.hidden_size)
    assert encoder.embed(batch).shape == (0, encoder.hidden_size)


def test_hidden_states_come_in_the_dtype_of_the_encoder_and_vectors_in_fp32(tiny_folder, precision):
    device, dtype = precision
    encoder = encoder_of(tiny_folder, device, dtype)
    batch = pack([[5, 6]], device)
    assert (encoder.hidden(batch).dtype, encoder.embed(batch).dtype) == (dtype, torch.float32)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "gelu_new"),
        ("hidden_act", "relu"),
        ("position_embedding_type", "relative_key"),
        ("is_decoder", True),
        ("add_cross_attention", True),
    ],
)
def test_what_this_forward_does_not_do_is_named(tiny_checkpoint, key, value):
    folder = tiny_checkpoint()
    edit_config(folder, **{key: value})
    with pytest.raises(UnsupportedArchitectureError, match=rf"{key} of .*, got {value!r}\. Choose another"):
        encoder_of(folder)


def test_heads_that_do_not_divide_the_width_are_named(tiny_checkpoint):
    folder = tiny_checkpoint()
    edit_config(folder, num_attention_heads=5)
    with pytest.raises(CheckpointError, match=r"num_attention_heads divides, got 32 and 5\. Check config"):
        encoder_of(folder)


@pytest.mark.parametrize(
    "key",
    ["hidden_size", "vocab_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"],
)
def test_a_size_that_the_configuration_lacks_is_named(tiny_checkpoint, key):
    folder = tiny_checkpoint()
    path = folder / "config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != key}))
    with pytest.raises(CheckpointError, match=key):
        encoder_of(folder)


QUERY = "encoder.layer.1.attention.self.query.weight"


def test_a_missing_tensor_is_named(tiny_checkpoint):
    folder = tiny_checkpoint(edit_weights=lambda weights: weights.pop(QUERY))
    with pytest.raises(CheckpointError, match=rf"{QUERY} of shape \[32, 32\], got none\. Check that config"):
        encoder_of(folder)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        (QUERY, [32, 16], r"\[32, 32\]"),
        (QUERY, [32], r"\[32, 32\]"),
        ("encoder.layer.0.output.LayerNorm.bias", [31], r"\[32\]"),
        ("embeddings.word_embeddings.weight", [7, 32], r"\[\d+, 32\]"),
        ("embeddings.token_type_embeddings.weight", [2, 31], r"\['any', 32\]"),
    ],
)
def test_a_tensor_of_a_wrong_shape_is_named(tiny_checkpoint, name, shape, expected):
    folder = tiny_checkpoint(edit_weights=lambda weights: weights.update({name: torch.zeros(shape)}))
    got = str(shape).replace("[", r"\[").replace("]", r"\]")
    with pytest.raises(CheckpointError, match=rf"{name} of shape {expected}, got {got}\. Check that config"):
        encoder_of(folder)


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
