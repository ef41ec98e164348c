"""How soon 1, 8 and 64 texts of 16 tokens are scored, for gpu_suite.py: MiniLM-L6, the references known.

`Scorer.score` from ids on the host, as where the policy shares the encoder's tokenizer, and from strings, to
scores on the host. Both with CUDA graphs where the `Scorer` has that option. Hundreds of turns, by the
caller's clock: p50 and p99. What is asked is asked of 64 texts, from ids, with CUDA graphs.
"""

from __future__ import annotations

import inspect
from functools import partial
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from benchmarks.bench_step import subject
from benchmarks.checkpoints import MINILM_L6
from benchmarks.measure import Run, repeated, require_close
from benchmarks.peers import HuggingFacePeer
from benchmarks.rows import Row
from benchmarks.scenarios import Bench, Scenario, Work, check_encodes, rows_of, vectors_in_fp32
from benchmarks.texts import Prose, read_tokenizer
from benchmarks.tuned import sentence_transformers
from benchmarks.workloads import OURS, SENTENCE_TRANSFORMERS, Ask, why
from fastreward import Scorer
from fastreward.encoders.checkpoint import load_checkpoint

FROM_IDS: Final = f"{OURS}, from ids"
FROM_STRINGS: Final = f"{OURS}, from strings"
GRAPHS: Final = ", CUDA graphs"
HUGGING_FACE: Final = "Hugging Face, from ids"

TOKENS: Final = 16
TURNS: Final = 500
ASKED_MS: Final = 1.0

MAX_SCORE_ERROR, RMS_SCORE_ERROR = 2e-2, 5e-3


def scorers(folder: Path, bench: Bench) -> tuple[dict[str, Scorer], str | None]:
    """Scorers by the ending of their rows' names, and why there is none with CUDA graphs, or None."""
    options: dict[str, Any] = {"device": bench.device, "dtype": bench.dtype, "progress": False}
    made = {"": Scorer(folder, **options)}
    if "cuda_graphs" not in inspect.signature(Scorer).parameters:
        return made, "Scorer has no option cuda_graphs"
    if bench.device.type != "cuda":
        return made, "CUDA graphs need a GPU"
    # Said aloud, for the default may be either.
    made = {"": Scorer(folder, cuda_graphs=False, **options)}
    return {**made, GRAPHS: Scorer(folder, cuda_graphs=True, **options)}, None


def measure(count: int, bench: Bench, name: str) -> list[Row]:
    """Check and time so many texts."""
    chosen = subject(MINILM_L6, bench)
    prose = Prose(read_tokenizer(load_checkpoint(chosen.folder).tokenizer_file))
    texts = prose.texts([TOKENS] * count, seed=1)
    references = prose.texts([TOKENS] * count, seed=2)
    expected = (
        vectors_in_fp32(chosen.folder, texts, bench.device)
        * vectors_in_fp32(chosen.folder, references, bench.device)
    ).sum(dim=1)
    made, no_graphs = scorers(chosen.folder, bench)
    runs: dict[str, Run] = {}
    for ending, scorer in made.items():
        content = scorer.tokenizer.content(texts)
        runs[FROM_IDS + ending] = partial(scorer.score, content, references)
        runs[FROM_STRINGS + ending] = partial(scorer.score, texts, references)
        for variant in (FROM_IDS + ending, FROM_STRINGS + ending):
            check_encodes(variant, scorer, runs[variant], count)
    for variant, run in runs.items():
        require_close(variant, run(), expected.cpu(), max_error=MAX_SCORE_ERROR, rms_error=RMS_SCORE_ERROR)
    framed = [list(map(int, ids)) for ids in made[""].tokenizer(texts)]
    failed = {f"{variant}{GRAPHS}": no_graphs for variant in (FROM_IDS, FROM_STRINGS)} if no_graphs else {}
    for peer, build in (
        (HUGGING_FACE, partial(_from_ids, bench, chosen.folder, framed)),
        (SENTENCE_TRANSFORMERS, partial(_from_strings, bench, chosen.folder, texts)),
    ):
        try:
            runs[peer] = build(made[""].embed(references, device=bench.device))
            runs[peer]()
        except Exception as error:  # a peer that does not run here is a row that says so
            runs.pop(peer, None)
            failed[peer] = why(error)
    timings = bench.time({n: repeated(run) for n, run in runs.items()}, turns=TURNS)
    facts = {"texts": count, "tokens": sum(map(len, framed)), "weights": chosen.weights}
    against = {
        n: FROM_STRINGS if "from strings" in n or n == SENTENCE_TRANSFORMERS else FROM_IDS for n in runs
    }
    rows = rows_of(name, timings, {FROM_IDS: Work(facts=facts)}, against=against, peak_flops=None, tail=True)
    return [*rows, *(Row(name, variant, error=reason) for variant, reason in failed.items())]


def _from_ids(bench: Bench, folder: Path, framed: list[list[int]], references: Tensor) -> Run:
    """Hugging Face's model: ids are copied to the device, one padded batch, scores to the host."""
    peer = HuggingFacePeer(folder, device=bench.device, dtype=bench.dtype)

    def score() -> Tensor:
        return (peer.embed_padded(peer.pad(framed, 2**20)) * references).sum(dim=1).cpu()

    return score


def _from_strings(bench: Bench, folder: Path, texts: list[str], references: Tensor) -> Run:
    model = sentence_transformers(folder, bench.device, bench.dtype, "sdpa")

    def score() -> Tensor:
        return (model.embed(texts, 64) * references).sum(dim=1).cpu()

    return score


SCENARIOS: Final = tuple(
    Scenario(
        *("latency", str(count), partial(measure, count)),
        asks=(Ask("ms", ASKED_MS, FROM_IDS + GRAPHS),) if count == 64 else (),
    )
    for count in (1, 8, 64)
)
