import importlib.util

import pytest
import torch

from fastreward import backends
from fastreward.backends import (
    CPU_ORDER,
    DTYPES,
    ENCODER_BACKENDS,
    OP_BACKENDS,
    availability,
    native_bf16,
    resolve_device,
    resolve_dtype,
    resolve_encoder,
    resolve_op,
    triton_interpreted,
)
from fastreward.encoders.cpus import int8_runs_here
from fastreward.errors import BackendUnavailableError, InputError
from fastreward.scorer import Scorer

CPU = torch.device("cpu")
on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")


@pytest.mark.parametrize("backend", ENCODER_BACKENDS + OP_BACKENDS)
def test_every_backend_tells_its_version_or_why_it_cannot_be_used(backend):
    state = availability(backend)
    modules = {"openvino": ["openvino"], "onnx": ["onnx", "onnxruntime"]}.get(backend, [])
    installed = all(importlib.util.find_spec(module) for module in modules)
    can_launch = backend != "triton" or torch.cuda.is_available() or triton_interpreted()
    assert state.usable == (installed and can_launch)
    assert len(state.detail.split()) > 1


@without_cuda
def test_triton_without_a_gpu_says_what_is_missing(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert "sees no GPU" in availability("triton").detail or "not installed" in availability("triton").detail


@pytest.mark.parametrize(
    "ask",
    [
        availability,
        lambda name: resolve_encoder(name, CPU),
        lambda name: resolve_op("pooled_cosine", CPU, name),
    ],
)
def test_an_unknown_backend_is_refused_with_those_that_exist(ask):
    with pytest.raises(InputError, match=r"a.* back-end .*among .*(packed|torch).*, got 'cudnn'\. Correct"):
        ask("cudnn")


def test_no_name_means_the_packed_encoder_on_a_gpu_and_the_first_of_an_order_on_a_cpu(device):
    usable = [name for name in CPU_ORDER if availability(name).usable]
    assert resolve_encoder(None, device) == ("packed" if device.type == "cuda" else usable[0])
    assert resolve_encoder("packed", device) == "packed"


def test_no_name_means_the_packed_encoder_where_nothing_else_is_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert resolve_encoder(None, CPU) == "packed"
    for name, packages in (("openvino", "openvino"), ("onnx", "onnx and onnxruntime")):
        remedy = rf'{packages} not installed: pip install "fastreward\[{name}\]"'
        with pytest.raises(BackendUnavailableError, match=remedy):
            resolve_encoder(name, CPU)


def test_no_name_passes_over_what_lacks_the_precision_or_an_option():
    assert resolve_encoder(None, CPU, packed_because="batch_invariant") == "packed"
    with pytest.raises(InputError, match=r"backend='packed' with batch_invariant, got 'onnx'"):
        resolve_encoder("onnx", CPU, packed_because="batch_invariant")


BOTH = {"openvino", "onnx", "onnxruntime"}


@pytest.mark.parametrize(
    ("installed", "calibrated", "chosen"),
    [
        (BOTH, False, "onnx"),  # OpenVINO has no int8 without a calibration
        (BOTH, True, "openvino"),
        ({"openvino"}, True, "openvino"),
        ({"openvino"}, False, "openvino"),  # which says what it needs
        ({"onnx", "onnxruntime"}, False, "onnx"),
        (set(), False, "packed"),
    ],
)
def test_int8_is_on_onnx_without_a_calibration_and_on_openvino_with_one(
    monkeypatch, installed, calibrated, chosen
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in installed else None)
    assert resolve_encoder(None, CPU, "int8", calibrated=calibrated) == chosen


def test_a_calibration_names_openvino_where_it_cannot_be_had(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(BackendUnavailableError, match=r"got cuda:0\. Pass device='cpu', or calibration=None"):
        resolve_encoder(None, torch.device("cuda", 0), calibrated=True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else name)
    remedy = r"back-end openvino, got .*pip install \"fastreward\[openvino\]\".*or pass calibration=None"
    with pytest.raises(BackendUnavailableError, match=remedy):
        resolve_encoder(None, CPU, "int8", calibrated=True)


def test_int8_runs_where_openvino_is_installed_beside_onnx(tiny_folder):
    for module in sorted(BOTH):
        pytest.importorskip(module)
    if not int8_runs_here():
        pytest.skip("this CPU has no int8 products")
    scorer = Scorer(tiny_folder, device="cpu", dtype="int8", progress=False)
    assert scorer.backend == "onnx"
    assert float(scorer.score(["heart"], ["heart"])) == pytest.approx(1.0, abs=1e-4)


def test_openvino_on_a_gpu_is_refused_with_the_remedy():
    pytest.importorskip("openvino")
    with pytest.raises(BackendUnavailableError, match=r"openvino on a CPU, got cuda:0\. Pass device='cpu'"):
        resolve_encoder("openvino", torch.device("cuda", 0))


def test_no_name_means_triton_on_a_gpu_and_pytorch_elsewhere(device):
    expected = "triton" if device.type == "cuda" else "torch"
    assert resolve_op("pooled_cosine", device, None) == expected
    assert resolve_op("pooled_cosine", device, "torch") == "torch"


def test_triton_named_for_tensors_on_a_cpu_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(BackendUnavailableError, match=r"Triton back-end of pooled_cosine.*backend='torch'"):
        resolve_op("pooled_cosine", CPU, "triton")


def test_triton_named_under_its_interpreter_runs_on_a_cpu(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "interpreter" in availability("triton").detail
    assert resolve_op("pooled_cosine", CPU, "triton") == "triton"


@without_cuda
@pytest.mark.parametrize("local_rank", [None, "3"])
def test_no_device_means_the_cpu_without_a_gpu(monkeypatch, local_rank):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert resolve_device(None) == CPU


@on_cuda
@pytest.mark.parametrize("asked", [None, "cuda", torch.device("cuda")])
def test_no_index_means_the_gpu_of_this_process(monkeypatch, asked):
    last = torch.cuda.device_count() - 1
    monkeypatch.setenv("LOCAL_RANK", str(last))
    assert resolve_device(asked) == torch.device("cuda", last)
    monkeypatch.delenv("LOCAL_RANK")
    assert resolve_device(asked) == torch.device("cuda", torch.cuda.current_device())


@on_cuda
@pytest.mark.skipif(torch.cuda.device_count() != 1, reason="needs exactly one GPU")
def test_a_process_that_sees_one_gpu_takes_it_whatever_its_rank(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "5")
    assert resolve_device(None) == torch.device("cuda", 0)


def test_a_named_device_is_taken(device):
    assert resolve_device(device) == resolve_device(str(device)) == device


@pytest.mark.parametrize("asked", ["cuda:99", torch.device("cuda", 99)])
def test_a_gpu_that_is_not_there_is_never_replaced(asked):
    with pytest.raises(
        BackendUnavailableError, match=r"CUDA device .*\(cuda:99\), got \d+ CUDA.*Pass device='cpu'"
    ):
        resolve_device(asked)


@without_cuda
def test_cuda_without_cuda_is_never_served_on_the_cpu():
    with pytest.raises(BackendUnavailableError, match=r"\(cuda\), got 0 CUDA devices.*Pass device='cpu'"):
        resolve_device("cuda")


@pytest.mark.parametrize("asked", ["gpu", "0", "meta", "mps"])
def test_anything_but_a_cpu_or_cuda_is_refused(asked):
    with pytest.raises(InputError, match=rf"device.*, got '?{asked}"):
        resolve_device(asked)


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_a_dtype_may_be_named_in_three_ways(name):
    dtype = getattr(torch, name)
    assert (
        resolve_dtype(name, CPU) == resolve_dtype(f"torch.{name}", CPU) == resolve_dtype(dtype, CPU) == dtype
    )


def test_no_dtype_means_bf16_exactly_where_the_hardware_has_it(device):
    expected = torch.bfloat16 if native_bf16(device) else torch.float32
    assert resolve_dtype(None, device) == expected


@on_cuda
def test_a_gpu_takes_float16():
    assert resolve_dtype("float16", torch.device("cuda", 0)) == torch.float16


@pytest.mark.parametrize("asked", ["float64", "half", "fp16", torch.float64, torch.int16, 16])
def test_an_unknown_dtype_is_refused_with_those_that_exist(asked):
    with pytest.raises(InputError, match=rf"{', '.join(DTYPES)}, got .*{asked}.*Correct the name"):
        resolve_dtype(asked, CPU)


@pytest.mark.parametrize(
    ("backend", "asked", "known"),
    [
        ("packed", "float16", "float32, bfloat16"),
        ("packed", torch.float16, "float32, bfloat16"),
        ("packed", "int8", "float32, bfloat16"),
        ("onnx", "bfloat16", "float32, int8"),
        ("openvino", "float16", "float32, bfloat16, int8"),
    ],
)
def test_a_precision_that_a_back_end_lacks_on_a_cpu_is_refused_with_those_it_has(backend, asked, known):
    expected = rf"a dtype among {known} with the back-end {backend} on a CPU, got {str(asked)[-4:]}"
    with pytest.raises(InputError, match=expected.replace("got ", "got .*")):
        resolve_dtype(asked, CPU, backend)


@without_cuda
def test_that_gpus_are_hidden_is_said_once_at_the_callers_own_line(tiny_folder, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    backends._say_if_gpus_are_hidden.cache_clear()
    with pytest.warns(UserWarning, match="CUDA_VISIBLE_DEVICES hides every GPU") as caught:
        Scorer(tiny_folder, backend="packed", dtype="float32").embed(["the heart"])
    assert [warning.filename for warning in caught] == [__file__]
    resolve_device(None)  # a second time would be an error here
    assert len(caught) == 1
