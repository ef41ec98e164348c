"""The encoder on ONNX Runtime against the packed one, and what surrounds a session."""

import multiprocessing
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastreward.encoders.checkpoint import load_checkpoint
from fastreward.encoders.cpus import cgroup_cores, int8_runs_here, resolve_threads
from fastreward.encoders.onnx import FixedShapes, OnnxEncoder, fixed_shape, pad, padded_groups
from fastreward.encoders.onnx_export import MAX_DRIFT, export_onnx
from fastreward.encoders.onnx_session import (
    ELEMENT_TYPES,
    check_int8,
    check_placement,
    onnxruntime_diagnosis,
    onnxruntime_problems,
    open_session,
    run_bound,
    session_options,
)
from fastreward.encoders.packed import PackedEncoder
from fastreward.errors import BackendUnavailableError, CheckpointError, FastRewardError, InputError
from fastreward.ops.pooled_cosine import POOLINGS
from fastreward.packing import pack

pytest.importorskip("onnx", reason="needs the extra onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)
FAMILIES = {
    "bert": {"family": "Bert"},
    "bert without layers": {"family": "Bert", "num_hidden_layers": 0},
    "bert of odd sizes": {
        "family": "Bert",
        "num_attention_heads": 7,
        "hidden_size": 49,
        "intermediate_size": 33,
    },
    "roberta with padding id 0": {"family": "Roberta", "pad_token_id": 0, "max_position_embeddings": 513},
    "xlm-r": {"family": "XLMRoberta", "num_hidden_layers": 3},
    "camembert": {"family": "Camembert"},
    "modernbert": {"family": "ModernBert", "num_hidden_layers": 4, "local_attention": 16},
    "modernbert whose last layer is local": {
        "family": "ModernBert",
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "local_attention": 32,
    },
    "modernbert with biases": {
        "family": "ModernBert",
        "local_attention": 7,
        "attention_bias": True,
        "mlp_bias": True,
        "norm_bias": True,
    },
}
LENGTHS = [3, 512, 0, 1, 17, 18, 17, 2, 0, 64, 1, 257, 128, 127]

# Two fp32 forwards that add in other orders: errors are multiples of 2^-24 of values of size 1, about a
# hundred of them in a row. A unit vector's elements are smaller.
HIDDEN_ATOL, VECTOR_ATOL, VECTOR_RMS = 1e-4, 1e-5, 1e-6


def ragged_batch(lengths=LENGTHS, vocab_size=100, seed=0, device=CPU):
    rng = random.Random(seed)
    return pack([[rng.randrange(vocab_size) for _ in range(length)] for length in lengths], device)


@pytest.fixture
def exported(tiny_checkpoint, tmp_path):
    """Write a random checkpoint and its export, and load both: (packed, ONNX)."""

    def make(precision="fp32", *, pooling=None, num_layers=None, threads=2, **settings):
        checkpoint = load_checkpoint(tiny_checkpoint(**settings))
        folder = export_onnx(
            checkpoint, tmp_path / "export", precision, pooling=pooling, num_layers=num_layers
        )
        packed = PackedEncoder(checkpoint, CPU, torch.float32, pooling=pooling, num_layers=num_layers)
        return packed, OnnxEncoder(folder, CPU, threads=threads)

    return make


@pytest.fixture(scope="module")
def tiny_export(tiny_folder, tmp_path_factory):
    """An export in fp32 that tests share."""
    return export_onnx(load_checkpoint(tiny_folder), tmp_path_factory.mktemp("shared") / "export")


def assert_vectors_agree(found, expected):
    error = (found - expected).abs()
    assert error.max() <= VECTOR_ATOL
    assert error.square().mean().sqrt() <= VECTOR_RMS


# --------------------------------------------------------------------------- the same numbers


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("settings", FAMILIES.values(), ids=FAMILIES)
def test_vectors_and_hidden_states_are_those_of_the_packed_encoder(exported, settings, pooling):
    packed, onnx = exported(pooling=pooling, **settings)
    batch = ragged_batch()
    assert_vectors_agree(onnx.embed(batch), packed.embed(batch))
    if pooling != "cls":
        torch.testing.assert_close(onnx.hidden(batch), packed.hidden(batch), atol=HIDDEN_ATOL, rtol=0)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_pooling_is_in_the_graph(exported, pooling):
    packed, onnx = exported(pooling=pooling)
    assert_vectors_agree(onnx.embed(ragged_batch()), packed.embed(ragged_batch()))
    assert onnx.pooling == pooling


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("family", ["Bert", "ModernBert"])
def test_the_first_layers_alone_can_be_exported(exported, family, pooling):
    packed, onnx = exported(family=family, pooling=pooling, num_hidden_layers=3, num_layers=2)
    assert_vectors_agree(onnx.embed(ragged_batch()), packed.embed(ragged_batch()))
    assert onnx.checkpoint.architecture.num_layers == 2


def test_scores_are_those_of_the_packed_encoder(exported):
    packed, onnx = exported()
    batch = ragged_batch()
    references = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    index = torch.arange(len(batch.lengths)) % 4
    expected = packed.cosine(batch, references, index)
    torch.testing.assert_close(onnx.cosine(batch, references, index), expected, atol=VECTOR_ATOL, rtol=0)


def test_a_text_without_tokens_is_the_zero_vector_and_scores_zero(tiny_export):
    encoder = OnnxEncoder(tiny_export, CPU)
    batch = pack([[], [5, 6], []], CPU)
    vectors = encoder.embed(batch)
    assert vectors.norm(dim=1).tolist() == pytest.approx([0.0, 1.0, 0.0], abs=1e-6)
    scores = encoder.cosine(batch, vectors[1:2].clone(), torch.zeros(3, dtype=torch.int64))
    assert scores.tolist() == pytest.approx([0.0, 1.0, 0.0], abs=1e-6)


@pytest.mark.parametrize("texts", [[], [[]], [[], []]])
def test_batches_without_tokens_have_their_shapes(tiny_export, texts):
    encoder, batch = OnnxEncoder(tiny_export, CPU), pack(texts, CPU)
    assert encoder.embed(batch).tolist() == [[0.0] * 32] * len(texts)
    assert encoder.hidden(batch).shape == (0, 32)
    assert encoder.cosine(batch, torch.ones(1, 32), torch.zeros(len(texts), dtype=torch.int64)).shape == (
        len(texts),
    )


def test_minilm_is_exported_with_its_vectors(minilm_folder, tmp_path):
    checkpoint = load_checkpoint(minilm_folder)
    encoder = OnnxEncoder(export_onnx(checkpoint, tmp_path / "minilm"), CPU, threads=2)
    batch = ragged_batch([5, 80, 33, 1, 256, 34], vocab_size=30522)
    assert_vectors_agree(encoder.embed(batch), PackedEncoder(checkpoint, CPU, torch.float32).embed(batch))


def test_a_vector_does_not_depend_on_its_batch(tiny_export):
    encoder, batch = OnnxEncoder(tiny_export, CPU, threads=2), ragged_batch()
    alone = [
        encoder.embed(pack([ids.tolist()], CPU))[0] for ids in batch.input_ids.split_with_sizes(batch.lengths)
    ]
    torch.testing.assert_close(torch.stack(alone), encoder.embed(batch), atol=2e-6, rtol=0)


def test_a_trainers_settings_change_nothing(tiny_export):
    encoder, batch = OnnxEncoder(tiny_export, CPU, threads=2), ragged_batch()
    references, index = torch.randn(2, 32), torch.arange(len(batch.lengths)) % 2
    expected = encoder.embed(batch), encoder.cosine(batch, references, index), encoder.hidden(batch)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.device("meta"):
            found = encoder.embed(batch), encoder.cosine(batch, references, index), encoder.hidden(batch)
    finally:
        torch.set_default_dtype(torch.float32)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


# --------------------------------------------------------------------------- on CUDA

on_cuda = pytest.mark.skipif(
    not torch.cuda.is_available() or "CUDAExecutionProvider" not in onnxruntime.get_available_providers(),
    reason="needs a GPU and onnxruntime-gpu",
)


@on_cuda
@pytest.mark.parametrize("cuda_graphs", [False, True], ids=["launches", "graphs"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_on_a_gpu_vectors_scores_and_states_are_those_of_the_packed_encoder(
    tiny_folder, tmp_path, precision, cuda_graphs
):
    checkpoint = load_checkpoint(tiny_folder)
    exact = PackedEncoder(checkpoint, CPU, torch.float32)
    folder = export_onnx(checkpoint, tmp_path / "export", precision)
    encoder = OnnxEncoder(folder, CUDA, cuda_graphs=cuda_graphs)
    references = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    index = torch.arange(len(LENGTHS)) % 4
    largest = VECTOR_ATOL if precision == "fp32" else MAX_DRIFT[precision]
    for seed in (0, 1, 0):  # of the same shapes: what is recorded at the first is replayed at the others
        batch, there = ragged_batch(seed=seed), ragged_batch(seed=seed, device=CUDA)
        expected = exact.embed(batch)
        error = encoder.embed(there).cpu() - expected
        assert error.abs().max() <= largest
        assert error.square().mean().sqrt() <= largest / 10
        scores = encoder.cosine(there, references.to(CUDA), index.to(CUDA)).cpu()
        torch.testing.assert_close(scores, exact.cosine(batch, references, index), atol=largest, rtol=0)
        states = encoder.hidden(there).cpu().float()
        # A state has a length of about √32, a vector one of 1.
        torch.testing.assert_close(states, exact.hidden(batch), atol=10 * largest, rtol=0)


@on_cuda
def test_on_a_gpu_the_streams_of_several_threads_get_what_one_gets(tiny_export):
    encoder = OnnxEncoder(tiny_export, CUDA, cuda_graphs=True)
    batches = [ragged_batch(LENGTHS[seed:], seed=seed, device=CUDA) for seed in range(4)]
    expected = [encoder.embed(batch).cpu() for batch in batches]  # and all batches are there

    def work(batch):
        with torch.cuda.stream(torch.cuda.Stream(CUDA)):
            return encoder.embed(batch).cpu()

    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for found, right in zip(pool.map(work, batches), expected, strict=True):
                torch.testing.assert_close(found, right, atol=2e-6, rtol=0)


# --------------------------------------------------------------------------- threads


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads_gives_the_same(tiny_export, threads):
    expected = OnnxEncoder(tiny_export, CPU, threads=1).embed(ragged_batch())
    found = OnnxEncoder(tiny_export, CPU, threads=threads).embed(ragged_batch())
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)


def test_several_threads_may_use_one_encoder_at_once(tiny_export):
    encoder = OnnxEncoder(tiny_export, CPU, threads=2)
    batches = [ragged_batch(LENGTHS[seed:], seed=seed) for seed in range(8)]
    expected = [encoder.embed(batch) for batch in batches]
    start = threading.Barrier(8)

    def work(number):
        start.wait()
        return [encoder.embed(batches[(number + turn) % 8]) for turn in range(8)]

    with ThreadPoolExecutor(8) as pool:
        for number, results in enumerate(pool.map(work, range(8))):
            for turn, vectors in enumerate(results):
                assert torch.equal(vectors, expected[(number + turn) % 8])


def test_a_forked_process_computes_with_threads_of_its_own(tiny_export):
    encoder, batch = OnnxEncoder(tiny_export, CPU, threads=2), ragged_batch()
    expected = encoder.embed(batch)  # the threads of this process have started
    fork = multiprocessing.get_context("fork")
    results = fork.SimpleQueue()
    child = fork.Process(target=lambda: results.put(encoder.embed(batch).tolist()), daemon=True)
    child.start()
    child.join(timeout=30)
    assert child.exitcode == 0
    assert results.get() == expected.tolist()


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2"])
def test_a_wrong_number_of_threads_is_named(tiny_export, threads):
    with pytest.raises(InputError, match=r"threads of 1 or more, got .*Pass a whole number"):
        OnnxEncoder(tiny_export, CPU, threads=threads)


def test_no_number_of_threads_means_what_this_process_may_use():
    assert 1 <= resolve_threads(None) <= torch.get_num_threads()


def control_groups(tmp_path: Path, files: dict[str, str], membership: str) -> float | None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "membership").write_text(membership)
    return cgroup_cores(tmp_path / "root", tmp_path / "membership")


@pytest.mark.parametrize(
    ("files", "membership", "cores"),
    [
        ({"root/cpu.max": "150000 100000\n"}, "0::/\n", 1.5),
        ({"root/cpu.max": "max 100000\n"}, "0::/\n", None),
        ({"root/job/cpu.max": "50000 100000", "root/job/a/cpu.max": "max 100000"}, "0::/job/a\n", 0.5),
        ({"root/job/cpu.max": "400000 100000", "root/job/a/cpu.max": "200000 100000"}, "0::/job/a\n", 2.0),
        ({"root/cpu.max": "300000 100000"}, "0::/not/mounted/here\n", 3.0),
        (
            {"root/cpu/pod/cpu.cfs_quota_us": "250000\n", "root/cpu/pod/cpu.cfs_period_us": "100000\n"},
            "4:memory:/pod\n1:cpu:/pod\n0::/\n",
            2.5,
        ),
        ({"root/cpu/cpu.cfs_quota_us": "-1", "root/cpu/cpu.cfs_period_us": "100000"}, "1:cpu:/\n", None),
        ({}, "", None),
    ],
)
def test_quotas_of_control_groups_are_read_up_to_the_top(tmp_path, files, membership, cores):
    assert control_groups(tmp_path, files, membership) == cores


def test_without_control_groups_nothing_limits(tmp_path):
    assert cgroup_cores(tmp_path, tmp_path / "none") is None


# --------------------------------------------------------------------------- runs


@given(
    lengths=st.lists(st.integers(0, 60), max_size=40),
    max_tokens=st.integers(1, 200),
    run_cost=st.integers(0, 50),
)
def test_groups_hold_every_text_once_within_their_bounds(lengths, max_tokens, run_cost):
    groups = padded_groups(lengths, max_tokens, run_cost)
    assert sorted(row for group in groups for row in group) == [
        row for row, length in enumerate(lengths) if length
    ]
    for group in groups:
        longest = max(lengths[row] for row in group)
        assert len(group) == 1 or longest * len(group) <= max_tokens
        assert sum(longest - lengths[row] for row in group) <= run_cost


def test_sorted_texts_of_a_batch_are_padded_by_less_than_three_percent():
    rng = random.Random(0)
    lengths = [min(256, max(3, int(rng.gammavariate(4, 16)))) for _ in range(512)]
    padded = sum(len(g) * max(lengths[row] for row in g) for g in padded_groups(lengths, 1024, 32))
    assert padded <= 1.03 * sum(lengths)


def test_a_rectangle_holds_the_texts_and_its_spare_rows_one_token():
    ids, lengths = pad(pack([[5, 6, 7], [], [8, 9]], CPU), [2, 0], (4, 5), filler=1)
    assert ids.tolist() == [[8, 9, 1, 1, 1], [5, 6, 7, 1, 1], [1] * 5, [1] * 5]
    assert lengths.tolist() == [2, 3, 1, 1]
    assert (ids.dtype, lengths.dtype) == (torch.int32, torch.int32)


@given(texts=st.integers(1, 200), longest=st.integers(1, 600))
def test_fixed_shapes_are_few_and_large_enough(texts, longest):
    rows, columns = fixed_shape(texts, longest, max_tokens=608)
    assert texts <= rows < 2 * texts + 1
    assert longest <= columns < longest + 32
    assert rows & (rows - 1) == 0
    assert columns % 32 == 0


def test_fixed_shapes_give_the_same_vectors_from_tensors_that_stay(tiny_export):
    # What a CUDA graph needs, but for the recording: it runs on a CPU too.
    encoder = OnnxEncoder(tiny_export, CPU, threads=1)
    batches = [ragged_batch(seed=seed) for seed in range(3)]
    expected = [(encoder.embed(batch), encoder.hidden(batch)) for batch in batches]
    encoder._shapes = FixedShapes()
    found = [(encoder.embed(batch), encoder.hidden(batch)) for batch in batches]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    ids, lengths = torch.ones(2, 32, dtype=torch.int32), torch.ones(2, dtype=torch.int32)
    twice = [encoder._shapes.of("embedding", ids * n, lengths, (2, 32), torch.float32) for n in (1, 2)]
    assert twice[0] is twice[1]
    assert twice[1].inputs["input_ids"].unique().tolist() == [2]


def test_shapes_beyond_the_bound_are_computed_from_tensors_that_do_not_stay(tiny_export):
    encoder = OnnxEncoder(tiny_export, CPU, threads=1)
    batches = [ragged_batch([length, 3], seed=length) for length in (20, 40, 70, 20, 70)]
    expected = [encoder.embed(batch) for batch in batches]
    encoder._shapes = FixedShapes(most=2)
    found = [encoder.embed(batch) for batch in batches]
    assert len(encoder._shapes._kept) == 2
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    ids, lengths = torch.ones(2, 96, dtype=torch.int32), torch.ones(2, dtype=torch.int32)
    assert encoder._shapes.of("embedding", ids, lengths, (2, 32), torch.float32) is None


@pytest.mark.parametrize("family", ["Bert", "ModernBert", "XLMRoberta"])
def test_a_fixed_shape_has_no_more_tokens_than_the_encoder_has_positions(exported, family):
    # One thread: on a GPU, where shapes are fixed, runs come one after another.
    _, encoder = exported(family=family, max_position_embeddings=50, threads=1)
    batch = ragged_batch([40, 3, 48])
    expected = encoder.embed(batch)
    encoder._shapes = FixedShapes()
    torch.testing.assert_close(encoder.embed(batch), expected, atol=1e-5, rtol=0)


def test_tensors_that_stay_serve_callers_in_and_out_of_inference_mode(tiny_export):
    encoder = OnnxEncoder(tiny_export, CPU, threads=1)
    encoder._shapes = FixedShapes()
    with torch.inference_mode():
        first = encoder.embed(ragged_batch())
    assert torch.equal(encoder.embed(ragged_batch()), first)


def test_a_session_runs_from_tensors_into_tensors(tiny_export):
    session = open_session(tiny_export / "model.onnx", CPU, 1)
    inputs = {
        "input_ids": torch.tensor([[5, 6]], dtype=torch.int32),
        "lengths": torch.tensor([2], dtype=torch.int32),
    }
    result = torch.full((1, 32), float("nan"))
    run_bound(session, inputs, {"embedding": result})
    (expected,) = session.run(["embedding"], {name: tensor.numpy() for name, tensor in inputs.items()})
    assert torch.equal(result, torch.from_numpy(expected))


def test_ids_beyond_the_vocabulary_are_an_input_error_with_a_remedy(tiny_export):
    encoder = OnnxEncoder(tiny_export, CPU, threads=2)
    batch = ragged_batch(vocab_size=50)
    expected = encoder.embed(batch)
    with pytest.raises(InputError, match=r"ids and lengths that the export takes, got .*Gather.*its own tok"):
        encoder.embed(pack([[5, 10**6]], CPU))
    assert torch.equal(encoder.embed(batch), expected)


def test_a_run_that_fails_otherwise_says_what_of_onnx_runtime_failed(tiny_export):
    session = open_session(tiny_export / "model.onnx", CPU, 1)
    inputs = {"input_ids": torch.ones(2, 3, dtype=torch.int32), "lengths": torch.ones(5, dtype=torch.int32)}
    with pytest.raises(FastRewardError, match=r"ONNX Runtime|export takes") as caught:
        run_bound(session, inputs, {"embedding": torch.empty(2, 32)})
    assert caught.value.__cause__ is not None


def test_memory_that_runs_out_is_the_error_that_the_scorer_goes_on_from(tiny_export):
    session_of = onnxruntime.SessionOptions()
    session_of.add_session_config_entry("session.use_env_allocators", "1")
    where = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    limit = onnxruntime.OrtArenaCfg({"max_mem": 1 << 22})
    onnxruntime.create_and_register_allocator(where, limit)
    session = onnxruntime.InferenceSession(
        str(tiny_export / "model.onnx"), session_of, providers=["CPUExecutionProvider"]
    )
    rows, longest = 64, 512  # 64 · 512² weights of attention are more than 4 MiB
    ids = torch.ones(rows, longest, dtype=torch.int32)
    lengths = torch.full((rows,), longest, dtype=torch.int32)
    result = torch.empty(rows, 32)
    with pytest.raises(torch.OutOfMemoryError, match="ONNX Runtime: "):
        run_bound(session, {"input_ids": ids, "lengths": lengths}, {"embedding": result})
    run_bound(
        session,
        {"input_ids": ids[:1, :8].contiguous(), "lengths": lengths[:1] * 0 + 8},
        {"embedding": result[:1]},
    )
    assert result[0].norm().item() == pytest.approx(1.0, abs=1e-5)


def test_tensor_types_are_numbered_as_onnx_does():
    from onnx import TensorProto

    names = {
        torch.float32: "FLOAT",
        torch.int32: "INT32",
        torch.float16: "FLOAT16",
        torch.bfloat16: "BFLOAT16",
    }
    for dtype, name in names.items():
        assert ELEMENT_TYPES[dtype] == TensorProto.DataType.Value(name)
    assert len(names) == len(ELEMENT_TYPES)


# --------------------------------------------------------------------------- what is refused


def test_batch_invariance_is_refused(tiny_export):
    with pytest.raises(
        InputError, match=r"promises no order of additions, got True\. Pass backend=\"packed\""
    ):
        OnnxEncoder(tiny_export, CPU, batch_invariant=True)


def test_cuda_graphs_are_refused_on_a_cpu(tiny_export):
    with pytest.raises(InputError, match=r"a CUDA device for cuda_graphs, got cpu"):
        OnnxEncoder(tiny_export, CPU, cuda_graphs=True)


def test_a_provider_that_is_not_there_is_an_error_and_not_the_cpu(tiny_export):
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("it is there")
    with pytest.raises(
        BackendUnavailableError, match=r"CUDAExecutionProvider for cuda:0, got a build with .*CPU"
    ):
        open_session(tiny_export / "model.onnx", CUDA, 1)


def test_a_provider_that_onnx_runtime_leaves_out_is_an_error(tiny_export, monkeypatch):
    # A CUDA build on a machine whose libraries do not fit: listed, and not there once the model is loaded.
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("it would start")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    with (
        pytest.raises(BackendUnavailableError, match=r"cuda:0, got CPUExecutionProvider after loading"),
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
    ):
        open_session(tiny_export / "model.onnx", CUDA, 1)


def placed(model):
    """A session of the CPU, loaded with a GPU's options: ONNX Runtime notes down where operators are."""
    return onnxruntime.InferenceSession(
        str(model), session_options(CUDA, 1), providers=["CPUExecutionProvider"]
    )


def test_operators_that_a_gpu_leaves_to_the_cpu_are_refused_by_name(tiny_export):
    with pytest.raises(
        BackendUnavailableError,
        match=r"all of this model's operators on cuda:0, got .*MatMul on CPUExecutionProvider.*packed",
    ) as caught:
        check_placement(placed(tiny_export / "model.onnx"), CUDA)
    named = {part.partition(" on ")[0] for part in caught.value.received.split(", ")}
    assert {"Gather", "MultiHeadAttention", "SkipLayerNormalization"} <= named
    assert named.isdisjoint({"Shape", "Squeeze", "Range"})


def test_the_arithmetic_of_shapes_may_stay_on_the_cpu(tmp_path):
    from onnx import TensorProto, helper, save

    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], start=1),
        helper.make_node("Squeeze", ["shape"], ["end"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.INT32, ["N", "L"])]
    outputs = [helper.make_tensor_value_info("end", TensorProto.INT64, [])]
    graph = helper.make_graph(nodes, "shapes", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    save(model, tmp_path / "shapes.onnx")
    session = placed(tmp_path / "shapes.onnx")
    kinds = [
        node.op_type for part in session.get_provider_graph_assignment_info() for node in part.get_nodes()
    ]
    assert kinds == ["Shape", "Squeeze"]
    check_placement(session, CUDA)


def test_a_gpus_options_have_placements_noted_down_and_a_cpus_do_not():
    key = "session.record_ep_graph_assignment_info"
    assert session_options(CUDA, 1).get_session_config_entry(key) == "1"
    with pytest.raises(RuntimeError, match=key):
        session_options(CPU, 1).get_session_config_entry(key)


def test_onnx_runtime_that_is_not_installed_is_named(tiny_export, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendUnavailableError, match=r'pip install "fastreward\[onnx\]"'):
        OnnxEncoder(tiny_export, CPU)


def test_hidden_states_of_a_cls_export_are_refused(exported):
    _, onnx = exported(pooling="cls")
    with pytest.raises(InputError, match=r"CLS pooling.*pooling='mean'"):
        onnx.hidden(ragged_batch([3]))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_precisions_without_operators_on_a_cpu_are_refused(tiny_folder, tmp_path, precision):
    folder = export_onnx(load_checkpoint(tiny_folder), tmp_path / "export", precision)
    with pytest.raises(BackendUnavailableError, match=rf"fp32 or int8 on a CPU, got {precision}"):
        OnnxEncoder(folder, CPU)


@pytest.mark.skipif(not int8_runs_here(), reason="8-bit sums overflow on this CPU")
def test_int8_is_refused_on_cuda(tiny_folder, tmp_path):
    folder = export_onnx(load_checkpoint(tiny_folder), tmp_path / "export", "int8")
    with pytest.raises(BackendUnavailableError, match="int8, whose products ONNX Runtime has for CPUs alone"):
        OnnxEncoder(folder, CUDA)


@pytest.mark.parametrize(
    ("machine", "has_vnni", "sums_fit"),
    [("x86_64", True, True), ("x86_64", False, False), ("AMD64", False, False), ("aarch64", False, True)],
)
def test_int8_needs_an_instruction_whose_sums_do_not_overflow(monkeypatch, machine, has_vnni, sums_fit):
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("torch.cpu._is_vnni_supported", lambda: has_vnni)
    assert int8_runs_here() == sums_fit
    if sums_fit:
        check_int8()
    else:
        with pytest.raises(BackendUnavailableError, match=rf"VNNI for int8, got .*{machine}.* without"):
            check_int8()


def test_a_file_that_is_no_model_is_named(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no model at all")
    with pytest.raises(CheckpointError, match=r"a model that ONNX Runtime can load, got .*model\.onnx"):
        open_session(tmp_path / "model.onnx", CPU, 1)


# --------------------------------------------------------------------------- doctor


@pytest.mark.parametrize(
    ("distributions", "built_for", "torch_cuda", "words"),
    [
        ([], None, None, []),
        (["onnxruntime"], None, None, []),
        (["onnxruntime-gpu"], "12.8", "12.6", []),
        (["onnxruntime-gpu"], "12.8", None, []),
        (["onnxruntime", "onnxruntime-gpu"], "12.8", "12.8", ["share the import name"]),
        (["onnxruntime", "onnxruntime-gpu"], None, None, ["pip uninstall onnxruntime onnxruntime-gpu"]),
        (["onnxruntime-gpu"], "12.8", "13.0", ["for CUDA 12 and PyTorch for CUDA 13"]),
        (["onnxruntime"], None, "12.8", ["has no CUDA provider"]),
        (["onnxruntime-gpu", "onnxruntime"], "11.8", "12.8", ["share the import name", "for CUDA 11"]),
    ],
)
def test_what_is_wrong_with_an_installation_is_said(distributions, built_for, torch_cuda, words):
    problems = onnxruntime_problems(distributions, built_for, torch_cuda)
    assert len(problems) == len(words)
    for problem, word in zip(problems, words, strict=True):
        assert word in problem


def test_an_installation_that_cannot_be_imported_is_a_problem_and_no_crash(tmp_path, monkeypatch):
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('libcublas.so.12: no such file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnxruntime")
    found = onnxruntime_diagnosis()
    assert found["version"] is None
    assert ["cannot be imported: libcublas.so.12" in problem for problem in found["problems"]] == [True]


def test_the_installation_here_is_described():
    found = onnxruntime_diagnosis()
    assert found["version"] == onnxruntime.__version__
    assert "CPUExecutionProvider" in found["providers"]
