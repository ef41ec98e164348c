import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fastreward.encoders.numerics import own_numerics
from fastreward.scorer import Scorer

CPU = torch.device("cpu")
COMPLETIONS = ["the heart pumps blood", "insulin lowers glucose " * 9, "", "energy", "Il cuore è una pompa."]
REFERENCES = ["blood is pumped by the heart", "glucose", "body", "energy", "the heart pumps blood"]

ONEDNN = torch.backends.mkldnn.matmul
CUBLAS = torch.backends.cuda.matmul
REDUCED_CUBLAS = [
    "allow_bf16_reduced_precision_reduction",
    "allow_fp16_reduced_precision_reduction",
    "allow_fp16_accumulation",
]


def setting(owner, name, value):
    """Make a context in which a trainer has set an attribute."""

    @contextlib.contextmanager
    def context():
        before = getattr(owner, name)
        setattr(owner, name, value)
        try:
            yield
        finally:
            setattr(owner, name, before)

    return context


def call(function, value, before):
    """Make a context in which a trainer has called a global setter."""

    @contextlib.contextmanager
    def context():
        function(value)
        try:
            yield
        finally:
            function(before)

    return context


TRAINERS_SETTINGS = {
    "autocast on the CPU": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "autocast on CUDA": lambda: torch.autocast(
        "cuda", dtype=torch.bfloat16, enabled=torch.cuda.is_available()
    ),
    "default dtype float64": call(torch.set_default_dtype, torch.float64, torch.float32),
    "default dtype bfloat16": call(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "default device": call(torch.set_default_device, "meta", None),
    "matmul precision medium": call(torch.set_float32_matmul_precision, "medium", "highest"),
    "matmul precision high": call(torch.set_float32_matmul_precision, "high", "highest"),
    "oneDNN in bf16": setting(ONEDNN, "fp32_precision", "bf16"),
    "oneDNN in tf32": setting(ONEDNN, "fp32_precision", "tf32"),
    "cuBLAS in tf32": setting(CUBLAS, "fp32_precision", "tf32"),
    "everything in tf32": setting(torch.backends, "fp32_precision", "tf32"),
    "everything in bf16": setting(torch.backends, "fp32_precision", "bf16"),
    "cuBLAS adding up in fp16": setting(CUBLAS, "allow_fp16_accumulation", True),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "gradients": torch.enable_grad,
}


def fp32_precisions():
    return [owner.fp32_precision for owner in (torch.backends, ONEDNN, CUBLAS)]


def all_settings():
    return [
        fp32_precisions(),
        [getattr(CUBLAS, name) for name in REDUCED_CUBLAS],
        (torch.get_default_dtype(), torch.get_default_device()),
        (torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")),
        (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
    ]


@pytest.fixture(autouse=True)
def as_it_was():
    """Start and end with what PyTorch starts with, down to settings that follow others ("none")."""
    yield
    torch.set_float32_matmul_precision("highest")
    for owner in (torch.backends, ONEDNN, CUBLAS):
        owner.fp32_precision = "none"
    for name in REDUCED_CUBLAS:
        setattr(CUBLAS, name, name != "allow_fp16_accumulation")


@pytest.fixture(scope="session")
def expected(minilm, precision):
    device, dtype = precision
    return minilm(device=device, dtype=dtype).score(COMPLETIONS, REFERENCES)


@pytest.mark.parametrize("context", TRAINERS_SETTINGS.values(), ids=TRAINERS_SETTINGS)
def test_a_trainers_settings_change_no_bit_of_a_score_and_stay_as_they_are(
    minilm, precision, expected, context
):
    device, dtype = precision
    scorer = minilm(device=device, dtype=dtype, reference_cache_bytes=0)
    with context():
        before = all_settings()
        scores = scorer.score(COMPLETIONS, REFERENCES)
        assert all_settings() == before
    assert torch.equal(scores, expected)
    assert (scores.dtype, scores.device) == (torch.float32, CPU)


@pytest.mark.parametrize("context", TRAINERS_SETTINGS.values(), ids=TRAINERS_SETTINGS)
def test_an_encoder_that_is_built_under_a_trainers_settings_gives_the_same_bits(
    tiny_folder, precision, context
):
    device, dtype = precision
    expected = Scorer(tiny_folder, device=device, dtype=dtype).embed(COMPLETIONS)
    with context():
        before = all_settings()
        vectors = Scorer(tiny_folder, device=device, dtype=dtype).embed(COMPLETIONS)
        assert all_settings() == before
    assert torch.equal(vectors, expected)
    assert (vectors.dtype, vectors.device) == (torch.float32, CPU)


def test_scores_are_plain_tensors_also_after_work_in_inference_mode(minilm):
    scorer = minilm(device=CPU, dtype=torch.float32)
    with torch.inference_mode():
        scorer.score(COMPLETIONS, REFERENCES)
    several = [[reference, "heart"] for reference in REFERENCES]
    for result in (
        scorer.score(COMPLETIONS, REFERENCES),
        scorer.score(COMPLETIONS, several),
        scorer.score([], []),
        scorer.embed(COMPLETIONS),
        scorer.embed([]),
    ):
        assert not result.is_inference()
        assert not result.requires_grad


@pytest.mark.parametrize("name", ["matmul precision medium", "everything in bf16"])
def test_two_threads_at_once_score_as_one_and_leave_the_settings_alone(minilm, name):
    scorer = minilm(device=CPU, dtype=torch.float32)
    expected = scorer.score(COMPLETIONS, REFERENCES)
    together = threading.Barrier(2)

    def score(_):
        together.wait(timeout=60)
        return [scorer.score(COMPLETIONS, REFERENCES) for _ in range(5)]

    with TRAINERS_SETTINGS[name](), ThreadPoolExecutor(2) as pool:
        before = all_settings()
        results = [scores for results in pool.map(score, range(2)) for scores in results]
        assert all_settings() == before
    assert all(torch.equal(scores, expected) for scores in results)


def test_full_precision_holds_until_the_last_thread_is_out():
    ONEDNN.fp32_precision = "bf16"
    entered, leave, left = threading.Event(), threading.Event(), threading.Event()

    def first_in_first_out():
        with own_numerics(CPU, torch.float32):
            entered.set()
            leave.wait(timeout=60)
        left.set()

    thread = threading.Thread(target=first_in_first_out)
    thread.start()
    assert entered.wait(timeout=60)
    with own_numerics(CPU, torch.float32):
        leave.set()
        assert left.wait(timeout=60)
        assert ONEDNN.fp32_precision == "ieee"
    thread.join()
    assert ONEDNN.fp32_precision == "bf16"


@pytest.mark.parametrize(
    ("device", "dtype", "owner", "name", "reduced", "full"),
    [
        ("cpu", torch.float32, ONEDNN, "fp32_precision", "bf16", "ieee"),
        ("cuda", torch.float32, CUBLAS, "fp32_precision", "tf32", "ieee"),
        *(("cuda", torch.bfloat16, CUBLAS, name, True, False) for name in REDUCED_CUBLAS),
    ],
)
def test_products_are_exact_inside_and_outside_as_the_trainer_has_them(
    device, dtype, owner, name, reduced, full
):
    setattr(owner, name, reduced)
    with own_numerics(torch.device(device), dtype):
        assert getattr(owner, name) == full
    assert getattr(owner, name) == reduced


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("precision", ["high", "medium"])
def test_pytorchs_older_questions_are_answered_inside(device, precision):
    torch.set_float32_matmul_precision(precision)
    with own_numerics(torch.device(device), torch.float32):  # other threads compile, and ask these
        assert torch.get_float32_matmul_precision() in ("highest", precision)
        assert CUBLAS.allow_tf32 in (True, False)
    assert torch.get_float32_matmul_precision() == precision


def test_what_a_trainer_sets_meanwhile_stays():
    ONEDNN.fp32_precision = "bf16"
    with own_numerics(CPU, torch.float32):
        ONEDNN.fp32_precision = "tf32"
    assert ONEDNN.fp32_precision == "tf32"


def test_full_precision_is_had_also_while_an_encoder_of_another_dtype_works():
    ONEDNN.fp32_precision = "bf16"
    with own_numerics(CPU, torch.bfloat16), own_numerics(CPU, torch.float32):
        assert ONEDNN.fp32_precision == "ieee"
    assert ONEDNN.fp32_precision == "bf16"


def test_settings_are_put_back_when_the_work_fails():
    ONEDNN.fp32_precision = "bf16"
    before = all_settings()
    with pytest.raises(RuntimeError, match="out of memory"), own_numerics(CPU, torch.float32):
        raise RuntimeError("out of memory")
    assert all_settings() == before


def test_a_precision_that_followed_the_general_one_follows_it_still():
    torch.backends.fp32_precision = "bf16"
    with own_numerics(CPU, torch.float32):
        assert ONEDNN.fp32_precision == "ieee"
    torch.backends.fp32_precision = "ieee"
    assert fp32_precisions() == ["ieee", "ieee", "ieee"]


def test_a_setting_of_full_precision_is_not_touched():
    before = fp32_precisions()
    with own_numerics(CPU, torch.float32):
        assert fp32_precisions() == before


def test_gradients_and_autocast_are_off_inside_and_back_outside():
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.enable_grad():
        with own_numerics(CPU, torch.float32):
            assert not torch.is_grad_enabled()
            assert not torch.is_autocast_enabled("cpu")
        assert torch.is_grad_enabled()
        assert torch.is_autocast_enabled("cpu")
