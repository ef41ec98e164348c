"""How near the precisions of an export are to fp32, and what the products in 8 bits are made of."""

import collections
import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from fastreward.encoders.checkpoint import load_checkpoint
from fastreward.encoders.cpus import int8_runs_here
from fastreward.encoders.onnx import OnnxEncoder, pad, padded_groups
from fastreward.encoders.onnx_export import export_onnx
from fastreward.encoders.onnx_graph import build_graph
from fastreward.encoders.onnx_int8 import rounded_columns, smoothing
from fastreward.encoders.onnx_session import open_session, run_bound
from fastreward.encoders.packed import PackedEncoder
from fastreward.packing import pack
from fastreward.tokenization import Tokenizer

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxruntime", reason="needs the extra onnx")

CPU = torch.device("cpu")
PRECISIONS = ("fp32", "fp16", "bf16", *(["int8"] if int8_runs_here() else []))
EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "data" / "explanations.jsonl"

needs_int8 = pytest.mark.skipif(not int8_runs_here(), reason="8-bit sums overflow on this CPU")

# --------------------------------------------------------------------------- fidelity

# A vector's error is √n · u by the reckoning of `MAX_DRIFT`: with 36 roundings in MiniLM's six layers 3e-3 in
# fp16 and 2.3e-2 in bf16, with 24 products 4.4e-2 in int8. It points anywhere in 384 dimensions, so that a
# cosine sees √(2 / 384) of it, 7 %, and the largest of some hundred cosines three times that. Twice to three
# times this is allowed for the largest, a third of that for the RMS. In fp32 other sums make 1e-6.
LARGEST_ERROR = {"fp32": 1e-5, "fp16": 1.5e-3, "bf16": 1e-2, "int8": 3e-2}
WITHIN_GROUPS = {"fp32": 1.0, "fp16": 0.999, "bf16": 0.99, "int8": 0.99}


def example_groups():
    """Texts of every fourth example: its explanation first, then its six candidates."""
    with EXAMPLES.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in islice(lines, 0, None, 4)]
    return [[row["explanation"], *row["candidates"].values()] for row in rows]


@pytest.fixture(scope="module")
def minilm_examples(minilm_folder):
    """MiniLM, the examples as a batch, and their scores by the packed encoder in fp32."""
    checkpoint = load_checkpoint(minilm_folder)
    tokenizer = Tokenizer.from_file(checkpoint.tokenizer_file, max_length=checkpoint.max_seq_length)
    groups = example_groups()
    batch = pack(tokenizer([text for group in groups for text in group]), CPU)
    vectors = PackedEncoder(checkpoint, CPU, torch.float32).embed(batch)
    return checkpoint, batch, scores_in_groups(vectors, len(groups))


def scores_in_groups(vectors, count):
    grouped = vectors.double().view(count, -1, vectors.shape[1])
    return (grouped[:, 1:] * grouped[:, :1]).sum(-1)


def vectors_of(path, batch, width):
    session, vectors = open_session(path, CPU, 1), torch.empty(len(batch.lengths), width)
    for rows in padded_groups(batch.lengths, 1024, 32):
        ids, lengths = pad(batch, rows, (len(rows), max(batch.lengths[row] for row in rows)), 0)
        result = torch.empty(len(rows), width)
        run_bound(session, {"input_ids": ids, "lengths": lengths}, {"embedding": result})
        vectors[rows] = result
    return vectors


@pytest.mark.parametrize("precision", PRECISIONS)
def test_scores_of_minilm_keep_their_order_in_every_precision(minilm_examples, tmp_path, precision):
    checkpoint, batch, expected = minilm_examples
    path = tmp_path / "model.onnx"
    if precision == "int8":  # calibrated on other texts than these
        path = export_onnx(checkpoint, tmp_path / "export", precision) / "model.onnx"
    else:  # ONNX Runtime has no operators in bf16 on a CPU
        emulated = precision == "bf16"
        model = build_graph(checkpoint, checkpoint.architecture, "mean", precision, emulated=emulated)
        onnx.save_model(model, path)
    found = scores_in_groups(vectors_of(path, batch, 384), len(expected))
    error = (found - expected).abs()
    assert error.max() <= LARGEST_ERROR[precision]
    assert error.square().mean().sqrt() <= LARGEST_ERROR[precision] / 3
    assert spearmanr(found.flatten(), expected.flatten()).statistic >= WITHIN_GROUPS[precision]
    within = [spearmanr(a, b).statistic for a, b in zip(found, expected, strict=True)]
    assert np.mean(within) >= WITHIN_GROUPS[precision]


# --------------------------------------------------------------------------- int8


@needs_int8
def test_a_score_in_int8_does_not_depend_on_the_batch(tiny_folder, tmp_path):
    encoder = OnnxEncoder(export_onnx(load_checkpoint(tiny_folder), tmp_path / "export", "int8"), CPU)
    texts = [[5, 6, 7], list(range(100)), [9] * 40, [8]]
    alone = torch.cat([encoder.embed(pack([text], CPU)) for text in texts])
    # Sums of integers are exact: what differs is fp32's, and now and then a rounding to 8 bits with it.
    torch.testing.assert_close(encoder.embed(pack(texts, CPU)), alone, atol=2e-3, rtol=0)


@needs_int8
def test_int8_products_are_all_of_the_layers(tiny_folder, tmp_path):
    model = onnx.load(export_onnx(load_checkpoint(tiny_folder), tmp_path / "export", "int8") / "model.onnx")
    counts = collections.Counter(node.op_type for node in model.graph.node)
    assert counts["MatMulIntegerToFloat"] == 4 * 2
    assert counts["MatMul"] == 1  # the pooling's
    levels = [w for w in model.graph.initializer if w.name.endswith(".levels")]
    assert {w.data_type for w in levels} == {onnx.TensorProto.INT8}


def test_columns_are_rounded_to_half_a_step_each():
    weight = np.random.default_rng(0).normal(size=(50, 20)).astype(np.float32)
    weight *= np.logspace(-6, 6, 20, dtype=np.float32)
    weight[:, 3] = 0
    levels, scales = rounded_columns(weight)
    assert np.all(np.abs(levels * scales - weight) <= 0.5001 * scales)
    assert np.abs(levels).max(axis=0).tolist() == [127] * 3 + [0] + [127] * 16


def test_smoothing_evens_the_channels_out():
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(64, 32)).astype(np.float32)
    ranges = np.exp(rng.normal(size=64) * 3).astype(np.float32)
    factors = smoothing(ranges, weight)
    evened = ranges / factors
    assert np.log(evened).std() < 0.6 * np.log(ranges).std()
    assert np.log(factors).mean() == pytest.approx(0, abs=1e-5)
    still = smoothing(np.zeros(64, np.float32), weight * 0)
    assert np.all(np.isfinite(still))
    assert np.all(still > 0)
