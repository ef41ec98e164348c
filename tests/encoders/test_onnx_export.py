"""What an export writes, when it refuses to, and what loading one checks."""

import collections
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastreward.encoders import onnx_export
from fastreward.encoders.checkpoint import load_checkpoint
from fastreward.encoders.cpus import int8_runs_here
from fastreward.encoders.onnx import OnnxEncoder
from fastreward.encoders.onnx_export import (
    MAX_DRIFT,
    cache_folder,
    export_onnx,
    load_onnx_encoder,
    resolve_precision,
)
from fastreward.encoders.onnx_graph import build_graph
from fastreward.encoders.onnx_manifest import read_manifest, revision_of, sha256
from fastreward.encoders.packed import PackedEncoder
from fastreward.errors import BackendUnavailableError, CheckpointError, InputError
from fastreward.packing import pack

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxruntime", reason="needs the extra onnx")

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
PRECISIONS = ("fp32", "fp16", "bf16", *(["int8"] if int8_runs_here() else []))
FILES = {
    "manifest.json",
    "model.onnx",
    "config.json",
    "tokenizer.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
}


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def content_of(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files_of(folder)}


@pytest.fixture
def export(tiny_folder, tmp_path):
    """A fresh export in fp32, for a test to damage."""
    return export_onnx(load_checkpoint(tiny_folder), tmp_path / "export")


# --------------------------------------------------------------------------- what is written


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", ["Bert", "XLMRoberta", "ModernBert"])
def test_every_precision_of_every_family_is_within_its_bound(tiny_checkpoint, tmp_path, family, precision):
    folder = export_onnx(load_checkpoint(tiny_checkpoint(family=family)), tmp_path / "export", precision)
    manifest = read_manifest(folder)
    assert 0 < manifest.rms_drift <= manifest.largest_drift <= MAX_DRIFT[precision]
    assert files_of(folder) == FILES
    onnx.checker.check_model(onnx.load(folder / "model.onnx"))


def test_precisions_are_what_they_are_called(tiny_folder, tmp_path):
    kinds = {
        "fp32": onnx.TensorProto.FLOAT,
        "fp16": onnx.TensorProto.FLOAT16,
        "bf16": onnx.TensorProto.BFLOAT16,
    }
    for precision, kind in kinds.items():
        model = onnx.load(
            export_onnx(load_checkpoint(tiny_folder), tmp_path / precision, precision) / "model.onnx"
        )
        weights = {
            w.data_type for w in model.graph.initializer if w.name.startswith(("layers", "embeddings"))
        }
        assert weights == {kind}
        assert model.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    drifts = [read_manifest(tmp_path / precision).rms_drift for precision in kinds]
    assert drifts[0] < drifts[1] / 10 < drifts[2] / 10


LAYERS = 3


def operators(model) -> collections.Counter[str]:
    return collections.Counter(f"{node.domain}:{node.op_type}".lstrip(":") for node in model.graph.node)


def test_every_layer_of_bert_is_fused(tiny_checkpoint):
    checkpoint = load_checkpoint(tiny_checkpoint(num_hidden_layers=LAYERS))
    counts = operators(build_graph(checkpoint, checkpoint.architecture, "mean"))
    assert counts["com.microsoft:MultiHeadAttention"] == LAYERS
    assert counts["com.microsoft:BiasGelu"] == LAYERS
    assert counts["com.microsoft:SkipLayerNormalization"] == 2 * LAYERS + 1
    assert counts["MatMul"] == 4 * LAYERS + 1  # and the pooling's
    assert not {"Softmax", "Erf", "Add", "LayerNormalization", "Transpose"} & counts.keys()


def test_every_layer_of_modernbert_is_fused(tiny_checkpoint):
    checkpoint = load_checkpoint(tiny_checkpoint(family="ModernBert", num_hidden_layers=LAYERS))
    counts = operators(build_graph(checkpoint, checkpoint.architecture, "mean"))
    assert counts["com.microsoft:MultiHeadAttention"] == LAYERS
    assert counts["com.microsoft:RotaryEmbedding"] == 2 * LAYERS
    assert counts["com.microsoft:SkipLayerNormalization"] == 2 * LAYERS
    assert counts["LayerNormalization"] == 1  # of the embeddings, where there is no residual yet
    assert not {"Softmax", "Erf", "Sin", "Cos"} & counts.keys()


def test_a_layers_tables_and_biases_are_stored_once(tiny_checkpoint):
    checkpoint = load_checkpoint(tiny_checkpoint(family="ModernBert", num_hidden_layers=7))
    model = build_graph(checkpoint, checkpoint.architecture, "mean")
    tables = [weight.name for weight in model.graph.initializer if weight.name.startswith("rotary")]
    assert len(tables) == 4  # cosines and sines for two bases
    assert sum(node.op_type == "Greater" for node in model.graph.node) == 1  # one window


def test_texts_and_lengths_may_have_any_size(export):
    model = onnx.load(export / "model.onnx")
    shapes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {
        "input_ids": ["N", "L"],
        "lengths": ["N"],
        "embedding": ["N", 32],
        "hidden": ["N", "L", 32],
    }


def test_the_manifest_says_what_the_export_is(tiny_folder, export):
    manifest = read_manifest(export)
    assert manifest.encoder == str(tiny_folder)
    assert (manifest.family, manifest.hidden_size, manifest.num_layers) == ("bert", 32, 2)
    assert (manifest.precision, manifest.pooling, manifest.opset) == ("fp32", "mean", 20)
    assert manifest.versions["onnx"] == onnx.__version__
    assert manifest.versions.keys() == {"fastreward", "onnx", "onnxruntime", "torch"}
    assert manifest.files == {name: sha256(export / name) for name in FILES - {"manifest.json"}}
    assert manifest.revision is None


def test_the_commit_is_read_from_the_hubs_cache(tiny_folder):
    checkpoint = load_checkpoint(tiny_folder)
    cached = Path("/home/me/.cache/huggingface/hub/models--a--b/snapshots/0123abcd")
    assert revision_of(dataclasses.replace(checkpoint, folder=cached)) == "0123abcd"
    assert revision_of(dataclasses.replace(checkpoint, folder=cached / "0_Transformer")) == "0123abcd"


def test_the_folder_scores_as_the_checkpoint_does(tiny_checkpoint, tmp_path):
    source = tiny_checkpoint(
        family="ModernBert",
        num_hidden_layers=3,
        transformer_path="0_Transformer",
        pooling={"pooling_mode": "lasttoken", "include_prompt": False},
        max_seq_length=77,
        do_lower_case=True,
        cased=True,
        prompts={"query": "query: ", "passage": "passage: "},
        default_prompt_name="passage",
    )
    checkpoint = load_checkpoint(source)
    found = load_checkpoint(export_onnx(checkpoint, tmp_path / "export", num_layers=2))
    same = ("pooling", "max_seq_length", "prompts", "default_prompt", "pools_prompt", "lowercase")
    assert {name: getattr(found, name) for name in same} == {name: getattr(checkpoint, name) for name in same}
    assert found.tokenizer_file.read_bytes() == checkpoint.tokenizer_file.read_bytes()
    assert found.architecture == checkpoint.architecture.first_layers(2)


def test_large_weights_lie_in_a_file_of_their_own(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "MAX_FILE", 1000)
    checkpoint = load_checkpoint(tiny_folder)
    for precision in {"fp32", PRECISIONS[-1]}:  # int8 is calibrated with another such model
        folder = export_onnx(checkpoint, tmp_path / precision, precision)
        assert files_of(folder) == FILES | {"model.onnx.data"}
    folder = tmp_path / "fp32"
    batch = pack([[5, 6, 7], [8]], CPU)
    expected = PackedEncoder(checkpoint, CPU, torch.float32).embed(batch)
    torch.testing.assert_close(OnnxEncoder(folder, CPU).embed(batch), expected, atol=1e-5, rtol=0)
    damage(folder / "model.onnx.data")
    with pytest.raises(CheckpointError, match=r"the model\.onnx\.data that was exported"):
        OnnxEncoder(folder, CPU)


# --------------------------------------------------------------------------- what is not written


def test_a_graph_that_drifts_is_not_written(tiny_checkpoint, tmp_path):
    def enlarge(weights):
        weights["encoder.layer.0.intermediate.dense.weight"] *= 1e6

    checkpoint = load_checkpoint(tiny_checkpoint(edit_weights=enlarge))
    with pytest.raises(CheckpointError, match=r"a graph in fp16 within 0\.02 .* got one that is nan off"):
        export_onnx(checkpoint, tmp_path / "here" / "export", "fp16")  # 65,504 is the largest number
    assert list((tmp_path / "here").iterdir()) == []
    export_onnx(checkpoint, tmp_path / "here" / "export", "fp32")


def test_a_wrong_graph_is_not_written(tiny_folder, tmp_path, monkeypatch):
    def without_mask(*arguments, **options):
        model = build_graph(*arguments, **options)
        for node in model.graph.node:
            if node.op_type == "MultiHeadAttention":
                node.input[4] = ""
        return model

    monkeypatch.setattr(onnx_export, "build_graph", without_mask)
    with pytest.raises(CheckpointError, match=r"and was not written\. Export in fp32"):
        export_onnx(load_checkpoint(tiny_folder), tmp_path / "export", "bf16")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp8"}, r"a precision among fp32, fp16, bf16, int8, got 'fp8'"),
        ({"pooling": "median"}, r"pooling among mean, cls, last, max, got 'median'"),
        ({"num_layers": 3}, r"num_layers from 1 to 2"),
        ({"num_layers": 0}, r"num_layers from 1 to 2"),
    ],
)
def test_wrong_options_are_named(tiny_folder, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        export_onnx(load_checkpoint(tiny_folder), tmp_path / "export", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(BackendUnavailableError, match=r'pip install "fastreward\[onnx\]"'):
        export_onnx(load_checkpoint(tiny_folder), tmp_path / "export")


def test_a_folder_that_cannot_be_made_is_named(tiny_folder, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"a folder that an export can be written to, got .*file"):
        export_onnx(load_checkpoint(tiny_folder), tmp_path / "file" / "export")
    assert (tmp_path / "file").read_text() == "in the way"


def in_a_process(*lines: str) -> subprocess.Popen[str]:
    program = "\n".join(
        (
            "import sys",
            "from fastreward.encoders.checkpoint import load_checkpoint",
            "from fastreward.encoders.onnx_export import export_onnx",
            *lines,
        )
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def test_a_full_disk_leaves_nothing(tiny_folder, tmp_path):
    folder = tmp_path / "here" / "export"
    process = in_a_process(
        "import resource, signal",
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)",
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))",  # no file may be longer
        "try:",
        f"    export_onnx(load_checkpoint({str(tiny_folder)!r}), {str(folder)!r})",
        "except Exception as error:",
        "    print(type(error).__name__, error)",
    )
    output, errors = process.communicate(timeout=120)
    assert output.startswith("CheckpointError Expected a folder that an export can be written to"), errors
    assert list((tmp_path / "here").iterdir()) == []


# --------------------------------------------------------------------------- one folder, several exports


def test_processes_that_export_to_one_folder_leave_one_good_result(tiny_folder, tmp_path):
    folder, gate = tmp_path / "here" / "export", tmp_path / "go"
    processes = [
        in_a_process(
            "import pathlib, time",
            f"checkpoint = load_checkpoint({str(tiny_folder)!r})",
            "print('ready', flush=True)",
            f"while not pathlib.Path({str(gate)!r}).exists(): time.sleep(0.001)",
            f"print(export_onnx(checkpoint, {str(folder)!r}))",
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    gate.touch()
    for process in processes:
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert output == f"{folder}\n"
    assert list(folder.parent.iterdir()) == [folder]
    assert OnnxEncoder(folder, CPU).embed(pack([[5, 6]], CPU)).norm() == pytest.approx(1)


def test_what_a_killed_export_leaves_is_removed_by_the_next_and_what_a_living_one_has_is_not(
    tiny_folder, tmp_path
):
    folder = tmp_path / "here" / "export"
    process = in_a_process(
        "import time",
        "from fastreward.encoders import onnx_export",
        "onnx_export._drift = lambda *_: (print('written', flush=True), time.sleep(120))",
        f"export_onnx(load_checkpoint({str(tiny_folder)!r}), {str(folder)!r})",
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n", process.communicate()
        (part,) = folder.parent.iterdir()
        assert (part / "model.onnx").is_file()
        checkpoint = load_checkpoint(tiny_folder)
        export_onnx(checkpoint, folder)
        assert set(folder.parent.iterdir()) == {folder, part}
        shutil.rmtree(folder)
    finally:
        process.kill()
        process.wait()
        process.communicate()
    assert (part / "model.onnx").is_file()
    export_onnx(checkpoint, folder)
    assert list(folder.parent.iterdir()) == [folder]


def test_hidden_folders_that_are_no_exports_stay(tiny_folder, tmp_path):
    mine = tmp_path / ".export.old"
    others = tmp_path / ".export-2.abcd1234.fastreward-part"
    file = tmp_path / ".export.abcd1234.fastreward-part"
    for path in (mine, others):
        path.mkdir()
    file.write_text("a file")
    folder = export_onnx(load_checkpoint(tiny_folder), tmp_path / "export")
    assert {*tmp_path.iterdir()} >= {folder, mine, others, file}


def test_the_same_export_again_is_the_one_that_is_there(tiny_folder, export):
    before = {name: (export / name).stat().st_mtime_ns for name in FILES}
    assert export_onnx(load_checkpoint(tiny_folder), export) == export
    assert {name: (export / name).stat().st_mtime_ns for name in FILES} == before


@pytest.mark.parametrize(
    "options",
    [{"precision": "fp16"}, {"pooling": "cls"}, {"num_layers": 1}],
    ids=["precision", "pooling", "layers"],
)
def test_another_export_is_not_overwritten(tiny_folder, export, options):
    before = content_of(export)
    with pytest.raises(InputError, match=r"a new or empty folder for the export, got .* with .* in fp32"):
        export_onnx(load_checkpoint(tiny_folder), export, **options)
    assert content_of(export) == before


def test_what_is_no_export_is_not_overwritten(tiny_folder, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match=r"which holds something else\. Name another"):
        export_onnx(load_checkpoint(tiny_folder), tmp_path)
    assert content_of(tmp_path) == {"mine.txt": b"keep"}


def test_an_empty_folder_is_used(tiny_folder, tmp_path):
    (tmp_path / "export").mkdir()
    assert files_of(export_onnx(load_checkpoint(tiny_folder), tmp_path / "export")) == FILES


def test_a_damaged_export_is_not_taken_for_a_good_one(tiny_folder, export):
    damage(export / "model.onnx")
    with pytest.raises(CheckpointError, match=r"the model\.onnx that was exported"):
        export_onnx(load_checkpoint(tiny_folder), export)


# --------------------------------------------------------------------------- what loading refuses


def damage(path: Path) -> None:
    """Change one byte in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", sorted(FILES - {"manifest.json"}))
def test_a_damaged_file_is_refused(export, name):
    damage(export / name)
    with pytest.raises(
        CheckpointError, match=rf"the {name} that was exported .*Remove the folder and export"
    ):
        OnnxEncoder(export, CPU)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_a_missing_file_is_named(export, name):
    (export / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{name} beside its manifest\.json, got none"):
        OnnxEncoder(export, CPU)


def test_a_truncated_model_is_refused(export):
    path = export / "model.onnx"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"the model\.onnx that was exported"):
        OnnxEncoder(export, CPU)


def test_a_foreign_model_is_refused(tiny_checkpoint, tmp_path, export):
    other = export_onnx(load_checkpoint(tiny_checkpoint(num_hidden_layers=1)), tmp_path / "other")
    (export / "model.onnx").write_bytes((other / "model.onnx").read_bytes())
    with pytest.raises(CheckpointError, match=r"the model\.onnx that was exported"):
        OnnxEncoder(export, CPU)


def test_a_folder_of_another_exporter_is_refused(export):
    (export / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"its manifest\.json, got none .*fastreward export"):
        OnnxEncoder(export, CPU)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "fastreward ONNX 99"}, r"format 'fastreward ONNX 2', got 'fastreward ONNX 99'"),
        ({"precision": "fp8"}, "other entries"),
        ({"hidden_size": "32"}, "other entries"),
        ({"more": 1}, "other entries"),
        ({"files": {}}, "other entries"),
        ({"pooling": "max"}, "a changed one"),
        ({"hidden_size": 16}, "a changed one"),
        ({"files": {"model.onnx": "0"}}, "a changed one"),
        ({"encoder": "another"}, "a changed one"),
        ({"sha256": "0"}, "a changed one"),
    ],
)
def test_a_changed_manifest_is_refused(export, change, message):
    path = export / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CheckpointError, match=message):
        OnnxEncoder(export, CPU)


@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
def test_a_manifest_that_is_none_is_refused(export, content):
    (export / "manifest.json").write_text(content)
    with pytest.raises(CheckpointError, match="manifest"):
        OnnxEncoder(export, CPU)


# --------------------------------------------------------------------------- by name, from the cache


def test_an_encoder_is_exported_once_to_the_cache(tiny_folder, tmp_path):
    checkpoint = load_checkpoint(tiny_folder)
    first = load_onnx_encoder(checkpoint, CPU, cache=tmp_path)
    (folder,) = tmp_path.iterdir()
    before = (folder / "model.onnx").stat().st_mtime_ns
    second = load_onnx_encoder(checkpoint, CPU, torch.float32, cache=tmp_path, threads=1)
    assert (folder / "model.onnx").stat().st_mtime_ns == before
    batch = pack([[5, 6, 7], [8]], CPU)
    assert torch.equal(first.embed(batch), second.embed(batch))
    assert first.manifest.precision == "fp32"


def test_options_and_weights_have_exports_of_their_own(tiny_folder, tiny_checkpoint, tmp_path):
    cache = tmp_path / "cache"
    checkpoint = load_checkpoint(tiny_folder)
    options = [{}, {"pooling": "cls"}, {"num_layers": 1}]
    for changed in options:
        load_onnx_encoder(checkpoint, CPU, **changed, cache=cache)
    folder = tiny_checkpoint(edit_weights=lambda weights: weights["embeddings.LayerNorm.bias"].add_(1))
    load_onnx_encoder(load_checkpoint(folder), CPU, cache=cache)
    assert len(list(cache.iterdir())) == len(options) + 1


def test_an_export_is_loaded_as_it_is(export, tmp_path):
    checkpoint = load_checkpoint(export)
    encoder = load_onnx_encoder(checkpoint, CPU, pooling="mean", num_layers=2, cache=tmp_path / "cache")
    assert encoder.hidden_size == 32
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "cls"}, r"pooling of mean, which is fixed in this export, got cls"),
        ({"num_layers": 1}, r"num_layers of 2, which is fixed in this export, got 1"),
        ({"dtype": torch.int8}, r"dtype of fp32, which is fixed in this export, got int8"),
        ({"batch_invariant": True}, r"batch_invariant=False"),
    ],
)
def test_an_export_is_not_loaded_as_another(export, options, message):
    with pytest.raises(InputError, match=message):
        load_onnx_encoder(load_checkpoint(export), CPU, **options)


def test_the_cache_is_where_the_platform_keeps_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "fastreward" / "onnx"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the standard says to ignore
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "fastreward" / "onnx"


@pytest.mark.parametrize(
    ("dtype", "device", "precision"),
    [
        (None, CPU, "fp32"),
        (torch.float32, CPU, "fp32"),
        (torch.int8, CPU, "int8"),
        (None, CUDA, "fp16"),
        (torch.float16, CUDA, "fp16"),
        (torch.bfloat16, CUDA, "bf16"),
        (torch.float32, CUDA, "fp32"),
    ],
)
def test_a_dtype_means_a_precision(dtype, device, precision):
    assert resolve_precision(dtype, device) == precision


@pytest.mark.parametrize(
    ("dtype", "device"),
    [(torch.bfloat16, CPU), (torch.float16, CPU), (torch.float8_e4m3fn, CPU), (torch.int8, CUDA)],
)
def test_a_dtype_without_operators_is_refused(dtype, device):
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(InputError, match=rf"on {device.type}, which has no operators for others, got {name}"):
        resolve_precision(dtype, device)
