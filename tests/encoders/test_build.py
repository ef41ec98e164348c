import pytest
import torch

from fastreward.errors import BackendUnavailableError, InputError
from fastreward.scorer import Scorer

TEXTS = ["The heart pumps blood.", "", "Blood", "A list of words, not all of them known: atrium, ventricle."]
REFERENCES = ["Blood is pumped by the heart."] * 3 + ["The heart has two atria and two ventricles."]


@pytest.fixture(scope="module")
def packed():
    return Scorer(backend="packed", device="cpu", dtype="float32")


@pytest.mark.parametrize("backend", ["openvino", "onnx"])
@pytest.mark.parametrize("long_texts", ["truncate", "chunk"])
def test_every_back_end_gives_the_scores_of_the_packed_encoder(
    packed, backend, long_texts, monkeypatch, tmp_path
):
    pytest.importorskip("openvino" if backend == "openvino" else "onnxruntime")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    scorer = Scorer(backend=backend, device="cpu", dtype="float32", long_texts=long_texts)
    assert (scorer.backend, scorer.dtype) == (backend, torch.float32)
    for given, expected in (
        (scorer.score(TEXTS, REFERENCES), packed.score(TEXTS, REFERENCES)),
        (scorer.maxsim(TEXTS, REFERENCES).f1, packed.maxsim(TEXTS, REFERENCES).f1),
        (scorer.embed(TEXTS), packed.embed(TEXTS)),
    ):
        assert (given - expected).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backend": "openvino", "batch_invariant": True}, "backend='packed' with batch_invariant"),
        ({"backend": "onnx", "attention": "sdpa"}, "backend='packed' with attention"),
        ({"backend": "openvino", "max_bytes": 10**9}, "backend='packed' with max_bytes"),
        ({"backend": "openvino", "dtype": "int8"}, "dtype='int8' and a calibration together"),
        ({"backend": "openvino", "calibration": "ranges.npz"}, "dtype='int8' and a calibration together"),
        ({"backend": "packed", "calibration": "ranges.npz"}, "backend='openvino' with a calibration"),
        ({"backend": "onnx", "dtype": "bfloat16"}, "float32, int8 with the back-end onnx"),
    ],
)
def test_options_that_exclude_each_other_are_refused(arguments, message):
    pytest.importorskip("openvino")
    pytest.importorskip("onnxruntime")
    with pytest.raises((InputError, BackendUnavailableError), match=message):
        Scorer(device="cpu", **arguments)


def test_an_option_of_the_packed_encoder_chooses_it():
    assert Scorer(device="cpu", batch_invariant=True).backend == "packed"
    assert Scorer(device="cpu", attention="sdpa").backend == "packed"


def test_a_scorer_sleeps_and_wakes_on_every_back_end(packed):
    pytest.importorskip("openvino")
    scorer = Scorer(backend="openvino", device="cpu", dtype="float32")
    before = scorer.score(TEXTS, REFERENCES)
    scorer.sleep()
    assert torch.equal(scorer.score(TEXTS, REFERENCES), before)
    assert scorer.stats.wakes == 1
