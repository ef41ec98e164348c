"""Embedding and scoring on a CPU: our back-ends beside the peers, with what each costs in fidelity.

    python benchmarks/bench_cpu.py [--texts FILE] [--peers VENV] [--only PEER …] [--rounds N] [--out FOLDER]
    python -m pytest benchmarks/bench_cpu.py --benchmark-only [--quick] [--rounds N]

512 candidates of 64 groups: the project's graded explanations, or made by rule from the texts of a file (see
`cpu_fidelity`). The peers live in an environment of their own, for they need an older transformers:

    python -m venv .venv/peers && .venv/peers/bin/pip install torch==2.13.0
    .venv/peers/bin/pip install -r benchmarks/peers_cpu/requirements.txt

Each runs in a process of its own, with the same texts and threads, and they take turns with ours. A peer's
clock runs inside its process. All batch sizes of a peer are tried first and its fastest is taken, but for
sentence-transformers at its defaults, which is the usual way. What is calibrated is so on the same texts on
both sides. Without that environment ours are timed alone, and what is asked beside a peer is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from rich.table import Table
from torch import Tensor

# The repository, which is not on the path of a script in a folder below it, nor of pytest run by its name.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.comparison import Measured, Pair, Row
from benchmarks.cpu_fidelity import (
    FIDELITY_COLUMNS,
    GROUPS,
    Fidelity,
    Groups,
    fidelity,
    own_encoders,
    scored_and_calibrating,
)
from benchmarks.measure import (
    CPU,
    ROOT,
    GateError,
    Prepare,
    Run,
    Timing,
    encoder_flops,
    interleaved,
    matrix_product_rate,
    provenance,
    repeated,
    wide_console,
    write_results,
)
from fastreward import Scorer
from fastreward.batching import MAX_BATCH_TOKENS
from fastreward.encoders.base import Encoder
from fastreward.encoders.checkpoint import DEFAULT_ENCODER, load_checkpoint

PEERS_VENV: Final = ROOT / ".venv" / "peers"
WORKER: Final = Path(__file__).with_name("peers_cpu") / "worker.py"

USUAL: Final = "sentence-transformers"
PEERS: Final = (
    USUAL,
    "sentence-transformers, tuned",
    "sentence-transformers bf16",
    "sentence-transformers onnx",
    "sentence-transformers onnx O3",
    "sentence-transformers onnx int8",
    "sentence-transformers openvino",
    "sentence-transformers openvino fp32",
    "sentence-transformers openvino bf16",
    "sentence-transformers openvino int8",
    "ctranslate2 fp32",
    "ctranslate2 int8",
    "fastembed",
)

EQUAL_FIDELITY: Final = 1e-4
"""1 - cosine to fp32 at most, of every text, for an embedding to count as equal to fp32's."""

INT8_SPEARMAN_WITHIN: Final = 0.99

ASKED_BEST_PEER: Final = 1.15
ASKED_USUAL: Final = 5.5
ASKED_INT8_PEER: Final = 1.3
ASKED_STEP: Final = 9.5

TUNING_TEXTS: Final = 96


class Clock:
    """Seconds of a run: those that it returns, as a peer does, or those that go by."""

    def __call__(self, run: Run) -> float:
        start = time.perf_counter()
        result = run()
        return result if isinstance(result, float) else time.perf_counter() - start


class Peer:
    """A peer in its process.

    Args:
        name: One of `PEERS`.
        venv: The peers' environment.
        work: Where it keeps converted models.
        texts: To calibrate on, all of them, and to tune on, the first `TUNING_TEXTS`.

    Raises:
        GateError: If it cannot run.
    """

    def __init__(self, name: str, venv: Path, work: Path, texts: Sequence[str]) -> None:
        threads = torch.get_num_threads()
        model = load_checkpoint(DEFAULT_ENCODER).folder
        places = ["--model", str(model), "--work", str(work), "--threads", str(threads)]
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
        self.name = name
        self._errors = (work / f"{name}.log").open("w+", encoding="utf-8")
        self._process = subprocess.Popen(
            [str(venv / "bin" / "python"), str(WORKER), name, *places],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **offline, "OMP_NUM_THREADS": str(threads)},
        )
        answer = self._ask({"load": list(texts), "tune": list(texts[:TUNING_TEXTS])})
        self.versions: dict[str, str] = answer["loaded"]
        self.batch_size: int = answer["batch_size"]

    def vectors(self, texts: Sequence[str]) -> Tensor:
        """Embed texts: [N, D]."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "vectors.npy"
            self._ask({"embed": [list(texts)], "to": str(path)})
            return torch.from_numpy(np.load(path)).float()

    def seconds(self, *lists: Sequence[str]) -> float:
        """Embed some lists of texts, one after another, and say what it took."""
        return float(self._ask({"embed": [list(texts) for texts in lists], "to": None})["seconds"])

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._errors.close()

    def _ask(self, request: Mapping[str, object]) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        line = ""
        if self._process.poll() is None:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
            line = stdout.readline()
        if not line:
            self._errors.seek(0)
            lines = self._errors.read().strip().splitlines() or ["nothing on stderr"]
            raise GateError(f"{self.name}: {lines[-1]}; not timed")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def peers(
    names: Sequence[str], venv: Path, texts: Sequence[str], say: Callable[[str], None]
) -> Iterator[dict[str, Peer]]:
    """The peers that run here, by name; of the others it is said why they do not."""
    if not (venv / "bin" / "python").exists():
        missing = "; ".join(names)
        say(f"no environment at {venv}, `make peers` makes one. Not compared with: {missing}")
        yield {}
        return
    with ExitStack() as stack:
        work = venv / "models"
        work.mkdir(exist_ok=True)
        running = {}
        for name in names:
            try:
                running[name] = peer = Peer(name, venv, work, texts)
            except GateError as error:
                say(str(error))
                continue
            stack.callback(peer.close)
            say(f"{name}: batches of {peer.batch_size}")
        yield running


def new_scorer(encoder: Encoder) -> Scorer:
    """A scorer on an encoder that is there already, which knows no text and no reference yet.

    Its batches are as large as they are in a scorer that builds this encoder itself.
    """
    scorer = Scorer(
        DEFAULT_ENCODER,
        device="cpu",
        dtype=encoder.dtype,
        max_batch_tokens=getattr(encoder, "batch_tokens", MAX_BATCH_TOKENS["cpu"]),
        recent_bytes=0,
        progress=False,
    )
    scorer._engine.encoder = encoder
    return scorer


@dataclass(frozen=True)
class Way:
    """One way to embed: its times over all candidates, and what it costs."""

    name: str
    own: bool
    timing: Timing
    fidelity: Fidelity

    @property
    def equal(self) -> bool:
        """Whether its vectors are those of fp32, as far as `EQUAL_FIDELITY` asks."""
        return self.fidelity.largest_cosine_error <= EQUAL_FIDELITY

    @property
    def int8(self) -> bool:
        """Whether it multiplies in 8 bits."""
        return self.name.endswith("int8")


class Bench:
    """The texts, ours and the peers.

    Args:
        groups: What is embedded and scored.
        encoders: Ours, by name; "packed fp32" is what is right.
        running: The peers.
    """

    def __init__(self, groups: Groups, encoders: Mapping[str, Encoder], running: Mapping[str, Peer]) -> None:
        self.groups = groups
        self.encoders = encoders
        self.peers = running
        self.texts = groups.texts
        per_group = len(groups.candidates[0])
        self.rows_references = [text for text in groups.references for _ in range(per_group)]
        self._scorers = {name: new_scorer(encoder) for name, encoder in encoders.items()}

    def fidelities(self) -> dict[str, Fidelity]:
        """What each way's vectors are worth, against our own in fp32."""
        references = list(self.groups.references)
        right = self._scorers["packed fp32"]
        expected = right.embed(references), right.embed(self.texts)
        found = {n: (s.embed(references), s.embed(self.texts)) for n, s in self._scorers.items()}
        found |= {n: (p.vectors(references), p.vectors(self.texts)) for n, p in self.peers.items()}
        return {name: fidelity(vectors, expected) for name, vectors in found.items()}

    def embedding(self) -> dict[str, Prepare]:
        """All candidates to vectors: nothing occurs twice, and nothing is known but words."""
        own = {name: repeated(partial(scorer.embed, self.texts)) for name, scorer in self._scorers.items()}
        others = {name: repeated(partial(peer.seconds, self.texts)) for name, peer in self.peers.items()}
        return {**own, **others}

    def step(self, encoder: str, *, cold: bool) -> Prepare:
        """The scores of a GRPO step; cold, the references and the words of a run's first step."""
        if not cold:
            warm = self._scorers[encoder]
            return repeated(partial(warm.score, self.texts, self.rows_references))

        def prepare() -> Run:
            return partial(new_scorer(self.encoders[encoder]).score, self.texts, self.rows_references)

        return prepare

    def usual_step(self) -> Prepare:
        """The usual way: both sides of every row."""
        return repeated(partial(self.peers[USUAL].seconds, self.texts, self.rows_references))

    def tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text."""
        return [len(ids) for ids in self._scorers["packed fp32"].tokenizer(texts)]


TimeVariants = Callable[[Mapping[str, Prepare]], Mapping[str, Timing]]


def measured_ways(bench: Bench, time_variants: TimeVariants) -> list[Way]:
    """Check, time and order all ways, the fastest first."""
    found = bench.fidelities()
    timings = time_variants(bench.embedding())
    ways = [Way(name, name in bench.encoders, timings[name], found[name]) for name in timings]
    return sorted(ways, key=lambda way: way.timing.p50)


def comparisons(bench: Bench, ways: Sequence[Way], steps: Mapping[str, Timing]) -> list[Measured]:
    """What is asked, as rows: the fastest of ours that qualifies, against what it is compared with."""
    embedded = bench.tokens(bench.texts)
    stepped = embedded + bench.tokens(bench.groups.references)
    own = [way for way in ways if way.own]
    exact = next((way for way in own if way.equal and not way.int8), None)
    int8 = next(
        (way for way in own if way.int8 and way.fidelity.spearman_within >= INT8_SPEARMAN_WITHIN), None
    )
    others = [way for way in ways if not way.own]
    plans = [
        ("embed, equal fidelity", exact, [way for way in others if way.equal], ASKED_BEST_PEER),
        ("embed, the usual way", exact, [way for way in others if way.name == USUAL], ASKED_USUAL),
        ("embed, int8", int8, [way for way in others if way.int8], ASKED_INT8_PEER),
    ]
    rows = []
    for name, ours, theirs, asked in plans:
        if ours is not None and theirs:
            timings = {way.name: way.timing for way in (ours, *theirs)}
            rows.append(_row(name, ours.name, timings, asked, len(embedded), embedded))
    usual = {name: timing for name, timing in steps.items() if name == USUAL}
    for way in (exact, int8):
        if way is not None and usual:
            cold, warm = f"{way.name}, cold", f"{way.name}, warm"
            timings = {cold: steps[cold], **usual}
            rows.append(_row("step, cold", cold, timings, ASKED_STEP, len(embedded), stepped))
            timings = {warm: steps[warm], **usual}
            rows.append(_row("step, warm", warm, timings, None, len(embedded), embedded))
    return rows


def _row(
    name: str,
    fast: str,
    timings: Mapping[str, Timing],
    asked: float | None,
    texts: int,
    lengths: Sequence[int],
) -> Measured:
    dtype = torch.float32 if "fp32" in fast else torch.bfloat16
    config = load_checkpoint(DEFAULT_ENCODER).config
    return Measured(
        row=Row(name, dtype, _no_pair, None if asked is None else ("≥", asked)),
        fast=fast,
        timings=timings,
        texts=texts,
        tokens=sum(lengths),
        flops=encoder_flops(lengths, config),
        ceiling=matrix_product_rate(dtype),
    )


def _no_pair(*_: object) -> Pair:
    raise AssertionError("these rows are made of timings that are there already")


def step_variants(bench: Bench, ways: Sequence[Way]) -> dict[str, Prepare]:
    """The steps to time: our fastest ways of either kind, cold and warm, and the usual; none without that."""
    variants: dict[str, Prepare] = {}
    if USUAL not in bench.peers:
        return variants
    for kind in (False, True):
        chosen = [way for way in ways if way.own and way.int8 == kind and (kind or way.equal)]
        for way in chosen[:1]:
            for cold in (True, False):
                name = f"{way.name}, {'cold' if cold else 'warm'}"
                variants[name] = bench.step(way.name, cold=cold)
    variants[USUAL] = bench.usual_step()
    return variants


def ways_table(bench: Bench, ways: Sequence[Way], title: str) -> Table:
    """One line a way: texts a second, ratios, fidelity."""
    table = Table(title=f"{title}\n{len(bench.texts)} texts, {sum(bench.tokens(bench.texts)):,} tokens")
    table.add_column("way")
    for column in ("texts/s", "p20 - p80", "of ours", *FIDELITY_COLUMNS):
        table.add_column(column, justify="right")
    best = {kind: _best_own(ways, kind) for kind in (False, True)}
    for way in ways:
        t, rate, ours = way.timing, len(bench.texts), best[way.int8]
        share = "" if ours is None else f"{ours.timing.p50 / t.p50:.2f}"
        spread = f"{rate / t.p80:,.0f} - {rate / t.p20:,.0f}"
        name = f"[bold]{way.name}[/bold]" if way.own else way.name
        table.add_row(name, f"{rate / t.p50:,.0f}", spread, share, *way.fidelity.cells())
    return table


def _best_own(ways: Sequence[Way], int8: bool) -> Way | None:
    return next((way for way in ways if way.own and way.int8 == int8), None)


def asked_table(rows: Sequence[Measured]) -> Table:
    """What is asked, and what was found."""
    table = Table(
        title="seconds, p50 (p20 - p80) of rounds in turns; of product rate: of ours in bf16 or fp32"
    )
    for column in (
        "row",
        "ours",
        "compared with",
        "ratio (p20 - p80)",
        "asked",
        "texts/s",
        "of product rate",
    ):
        table.add_column(column)
    for row in rows:
        table.add_row(*row.cells())
    return table


# --------------------------------------------------------------------------- under pytest-benchmark


@pytest.fixture(scope="module")
def bench(quick: bool, show: Callable[[Table], None]) -> Iterator[Bench]:
    groups, calibrating = scored_and_calibrating(None, 4 if quick else GROUPS)
    names = (USUAL,) if quick else PEERS
    with tempfile.TemporaryDirectory() as exports:
        encoders = own_encoders(load_checkpoint(DEFAULT_ENCODER), calibrating, Path(exports))
    said = Table("the peers on a CPU")
    show(said)
    with peers(names, PEERS_VENV, calibrating, said.add_row) as running:
        yield Bench(groups, encoders, running)


def test_cpu(
    bench: Bench,
    interleave: Callable[..., dict[str, Timing]],
    benchmark: Any,
    show: Callable[[Table], None],
    rounds: int,
) -> None:
    ways = measured_ways(bench, lambda variants: interleave(variants, Clock(), rounds))
    steps = interleaved(step_variants(bench, ways), Clock(), rounds=rounds)
    rows = comparisons(bench, ways, steps)
    show(ways_table(bench, ways, "embedding on a CPU"))
    if rows:
        show(asked_table(rows))
    benchmark.extra_info["ways"] = [way_json(bench, way) for way in ways]
    benchmark.extra_info["rows"] = [row.as_json() for row in rows]


def way_json(bench: Bench, way: Way) -> dict[str, Any]:
    """A way as it is written."""
    return {
        "variant": way.name,
        "own": way.own,
        **way.timing.as_json(),
        "texts_per_s": len(bench.texts) / way.timing.p50,
        "fidelity": asdict(way.fidelity),
    }


# --------------------------------------------------------------------------- as a script


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables: 0 when it is done, with the peers that are there."""
    parser = argparse.ArgumentParser(prog="bench_cpu.py", description="Embedding on a CPU, beside the peers.")
    parser.add_argument("--texts", type=Path, help="references; default: the graded explanations")
    parser.add_argument("--groups", type=int, default=GROUPS, help=f"of eight (default: {GROUPS})")
    parser.add_argument("--peers", type=Path, default=PEERS_VENV, help="the peers' environment")
    parser.add_argument("--only", nargs="+", choices=PEERS, metavar="PEER", help=", ".join(PEERS))
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--quick", action="store_true", help="four groups and two rounds: does it run?")
    parser.add_argument("--out", type=Path, help="also write the results below this folder")
    options = parser.parse_args(arguments)
    console, source = wide_console(), provenance(CPU)
    rounds = 2 if options.quick else options.rounds
    groups, calibrating = scored_and_calibrating(options.texts, 4 if options.quick else options.groups)
    with tempfile.TemporaryDirectory() as exports:
        encoders = own_encoders(load_checkpoint(DEFAULT_ENCODER), calibrating, Path(exports))
    chosen = options.only or PEERS
    with peers(chosen, options.peers, calibrating, console.print) as running:
        bench = Bench(groups, encoders, running)
        time_variants = partial(interleaved, clock=Clock(), rounds=rounds)
        ways = measured_ways(bench, time_variants)
        console.print(ways_table(bench, ways, f"embedding on {source['device']}"))
        steps = interleaved(step_variants(bench, ways), Clock(), rounds=rounds)
        rows = comparisons(bench, ways, steps)
        if rows:
            console.print(asked_table(rows))
        versions = next((peer.versions for peer in running.values()), {})
    if options.out is not None:
        name = "graded explanations" if options.texts is None else options.texts.name
        settings = {"texts": name, "groups": len(groups.references), "rounds": rounds, "quick": options.quick}
        content = {
            **source,
            "suite": "bench_cpu",
            "settings": settings,
            "peer_versions": versions,
            "ways": [way_json(bench, way) for way in ways],
            "rows": [row.as_json() for row in rows],
        }
        console.print(f"wrote {write_results(options.out, 'bench_cpu', content)}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
