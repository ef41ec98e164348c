"""What a faster way to embed on a CPU costs: vectors and scores held against our own in fp32.

    python benchmarks/cpu_fidelity.py [--texts FILE] [--groups N] [--out FOLDER]

Groups of eight candidates and one reference, as in GRPO: the project's graded explanations, or texts of a
file (JSON lines with a field among `TEXT_FIELDS`, or a text on each line) as references. Their candidates are
made by rule: cut, put in another order, reworded, mixed with another text, or another text altogether.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from rich.table import Table
from torch import Tensor

# The repository, which is not on the path of a script in a folder below it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measure import CPU, errors, provenance, spearman, wide_console, write_results
from benchmarks.shapes import explanation_batch
from fastreward.backends import native_bf16
from fastreward.encoders.base import Encoder
from fastreward.encoders.checkpoint import DEFAULT_ENCODER, Checkpoint, load_checkpoint
from fastreward.encoders.onnx import OnnxEncoder
from fastreward.encoders.onnx_export import export_onnx
from fastreward.encoders.openvino import OpenVINOEncoder, calibrate_int8
from fastreward.encoders.packed import PackedEncoder
from fastreward.packing import pack, token_budget_batches
from fastreward.tokenization import Tokenizer

GROUP: Final = 8
GROUPS: Final = 64

TEXT_FIELDS: Final = ("rationale", "explanation", "reference", "text")

CALIBRATION_GROUPS: Final = 16
"""Groups that int8 is calibrated on, which are not among those that are scored."""

Embed = Callable[[Sequence[str]], Tensor]
"""Texts → vectors [N, D], of any length."""

# Words that can take each other's place without a change of grammar, nearly everywhere.
SYNONYMS: Final[Mapping[str, str]] = {
    "so": "hence",
    "hence": "so",
    "therefore": "thus",
    "thus": "therefore",
    "because": "since",
    "since": "because",
    "total": "overall",
    "number": "count",
    "get": "obtain",
    "have": "hold",
    "is": "equals",
    "are": "come to",
    "and": "as well as",
    "let": "suppose",
    "given": "known",
    "answer": "solution",
    "then": "next",
    "first": "to begin with",
    "speed": "velocity",
    "cost": "price",
    "price": "cost",
    "perché": "poiché",
    "quindi": "dunque",
    "dunque": "quindi",
    "ogni": "ciascun",
}


@dataclass(frozen=True)
class Groups:
    """P references, and for each of them as many candidates as for every other."""

    references: tuple[str, ...]
    candidates: tuple[tuple[str, ...], ...]

    @property
    def texts(self) -> list[str]:
        """All candidates, group by group."""
        return [text for group in self.candidates for text in group]

    def split(self, first: int) -> tuple[Groups, Groups]:
        """The first groups, and all behind them."""
        left = Groups(self.references[:first], self.candidates[:first])
        return left, Groups(self.references[first:], self.candidates[first:])


def graded_groups(groups: int) -> Groups:
    """The graded explanations, eight candidates for a reference, Italian and English in turns.

    Raises:
        ValueError: If there are not so many that are all distinct.
    """
    batch = explanation_batch(groups, GROUP)
    rows = random.Random(0).sample(range(groups), groups)
    texts = [batch.completions[GROUP * row : GROUP * (row + 1)] for row in rows]
    return Groups(tuple(batch.references[GROUP * row] for row in rows), tuple(texts))


def file_groups(path: Path, groups: int) -> Groups:
    """Texts of a file as references, with candidates made by rule from them and from others.

    Raises:
        ValueError: If there are fewer distinct texts than groups.
    """
    texts = list(dict.fromkeys(_read_texts(path)))
    if len(texts) < groups:
        raise ValueError(f"{path} has {len(texts)} distinct texts, {groups} groups are asked for")
    rng = random.Random(0)
    chosen = rng.sample(texts, groups)
    return Groups(tuple(chosen), tuple(_candidates(text, texts, rng) for text in chosen))


def _read_texts(path: Path) -> list[str]:
    texts = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if path.suffix == ".jsonl" and line.strip():
            row = json.loads(line)
            line = next((str(row[key]) for key in TEXT_FIELDS if row.get(key)), "")
        if line.strip():
            texts.append(line)
    return texts


def _candidates(text: str, others: Sequence[str], rng: random.Random) -> tuple[str, ...]:
    """Eight candidates, roughly from the nearest to the farthest."""
    sentences = _sentences(text)
    another = rng.choice([other for other in others if other != text])
    foreign = _sentences(another)
    shuffled = rng.sample(sentences, len(sentences))
    half, words = max(1, len(sentences) // 2), text.split()
    made = (
        reworded(text),
        "\n".join(shuffled),
        "\n".join(sentences[: max(1, len(sentences) - 1)]) + " " + words[-1],
        " ".join(words[: max(1, len(words) * 2 // 3)]),
        "\n".join(sentences[:half] + foreign[len(foreign) // 2 :]),
        reworded(" ".join(words[len(words) // 2 :])),
        "\n".join(rng.sample(sentences[half:] + foreign, len(sentences[half:] + foreign))),
        another,
    )
    # What a rule leaves as it is would tie with the reference's other copies at a score of 1.
    seen = {_words(text)}
    distinct = []
    for candidate in made:
        while _words(candidate) in seen:
            candidate += f" {rng.choice(foreign)}"
        seen.add(_words(candidate))
        distinct.append(candidate)
    return tuple(distinct)


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", text.lower()))


def _sentences(text: str) -> list[str]:
    parts = [part.strip() for part in re.split(r"(?<=[.!?;:])\s+|\n", text)]
    return [part for part in parts if part] or [text]


def reworded(text: str) -> str:
    """Put another word for every word of `SYNONYMS`.

    Example:
        >>> reworded("So the total is 5.")
        'Hence the overall equals 5.'
    """

    def other(found: re.Match[str]) -> str:
        word = found[0]
        synonym = SYNONYMS.get(word.lower(), word)
        return synonym.capitalize() if word[0].isupper() else synonym

    return re.sub(r"[^\W\d_]+", other, text)


@dataclass(frozen=True)
class Fidelity:
    """Vectors and scores of one way against those of another that is right.

    Attributes:
        texts: How many vectors were compared.
        scores: How many scores.
        largest_cosine_error: 1 - cosine of a vector with the right one, the largest.
        rms_cosine_error: The same, RMS.
        largest_error: Of a score.
        rms_error: Of a score.
        spearman: Rank correlation of all scores.
        spearman_within: The same within a group, the mean over the groups.
        best_changes: Share of the groups whose best candidate is another one.
        worst_changes: Share of the groups whose worst candidate is another one.
    """

    texts: int
    scores: int
    largest_cosine_error: float
    rms_cosine_error: float
    largest_error: float
    rms_error: float
    spearman: float
    spearman_within: float
    best_changes: float
    worst_changes: float

    def cells(self) -> list[str]:
        """What a table shows, in the order of `FIDELITY_COLUMNS`."""
        return [
            f"{self.largest_cosine_error:.1e}",
            f"{self.rms_cosine_error:.1e}",
            f"{self.largest_error:.1e}",
            f"{self.rms_error:.1e}",
            f"{self.spearman:.5f}",
            f"{self.spearman_within:.4f}",
            f"{100 * self.best_changes:.0f} / {100 * self.worst_changes:.0f} %",
        ]


FIDELITY_COLUMNS: Final = (
    "1 - cosine, largest",
    "RMS",
    "score, largest",
    "RMS",
    "Spearman",
    "within groups",
    "best / worst changes",
)


def fidelity(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> Fidelity:
    """Compare vectors.

    Args:
        found: Of the references [P, D] and of the candidates [P · G, D], of any length.
        expected: The right ones.
    """
    cosine_errors = torch.cat([1.0 - _cosines(f, e) for f, e in zip(found, expected, strict=True)])
    ours, right = _scores(*found), _scores(*expected)
    largest, rms = errors(ours, right)
    within = [spearman(a, b) for a, b in zip(ours, right, strict=True)]
    return Fidelity(
        texts=len(cosine_errors),
        scores=right.numel(),
        largest_cosine_error=float(cosine_errors.max()),
        rms_cosine_error=float(cosine_errors.square().mean().sqrt()),
        largest_error=largest,
        rms_error=rms,
        spearman=spearman(ours.flatten(), right.flatten()),
        spearman_within=sum(within) / len(within),
        best_changes=float((ours.argmax(dim=1) != right.argmax(dim=1)).double().mean()),
        worst_changes=float((ours.argmin(dim=1) != right.argmin(dim=1)).double().mean()),
    )


def _scores(references: Tensor, candidates: Tensor) -> Tensor:
    """[P, D] and [P · G, D] → [P, G]."""
    groups = len(references)
    return _cosines(candidates, references.repeat_interleave(len(candidates) // groups, 0)).view(groups, -1)


def _cosines(left: Tensor, right: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(left.double(), right.double(), dim=1)


def embedding(checkpoint: Checkpoint, encoder: Encoder) -> Embed:
    """Embed texts by an encoder, batched by length."""
    tokenizer = Tokenizer.from_file(checkpoint.tokenizer_file, max_length=checkpoint.max_seq_length)

    def embed(texts: Sequence[str]) -> Tensor:
        token_ids = tokenizer(texts)
        vectors = torch.empty((len(texts), encoder.hidden_size), dtype=torch.float32)
        for rows in token_budget_batches([len(ids) for ids in token_ids], 2048):
            vectors[rows] = encoder.embed(pack([token_ids[row] for row in rows], CPU))
        return vectors

    return embed


def own_encoders(
    checkpoint: Checkpoint, calibration_texts: Sequence[str], exports: Path
) -> dict[str, Encoder]:
    """Our encoders in the precisions that this CPU multiplies; "packed fp32" is what is right.

    Args:
        checkpoint: The encoder.
        calibration_texts: What OpenVINO's int8 is calibrated on.
        exports: A folder for ONNX graphs.
    """
    tokenizer = Tokenizer.from_file(checkpoint.tokenizer_file, max_length=checkpoint.max_seq_length)
    precisions = {"fp32": torch.float32}
    if native_bf16(CPU):
        precisions["bf16"] = torch.bfloat16
    encoders: dict[str, Encoder] = {}
    for name, dtype in precisions.items():
        encoders[f"packed {name}"] = PackedEncoder(checkpoint, CPU, dtype)
        encoders[f"openvino {name}"] = OpenVINOEncoder(checkpoint, CPU, dtype)
    encoders["onnx fp32"] = OnnxEncoder(export_onnx(checkpoint, exports / "fp32"), CPU)
    if torch.cpu._is_vnni_supported():
        calibration = calibrate_int8(checkpoint, tokenizer(calibration_texts))
        rest = list(precisions.values())[-1]
        encoders["openvino int8"] = OpenVINOEncoder(checkpoint, CPU, rest, calibration=calibration)
        encoders["onnx int8"] = OnnxEncoder(export_onnx(checkpoint, exports / "int8", "int8"), CPU)
    return encoders


def scored_and_calibrating(texts: Path | None, groups: int) -> tuple[Groups, list[str]]:
    """Groups to score, and texts of other groups to calibrate int8 on."""
    calibrating = max(1, min(CALIBRATION_GROUPS, groups // 2))
    made = graded_groups(groups) if texts is None else file_groups(texts, groups + calibrating)
    if texts is None:  # there are no more explanations than these: some of them calibrate
        groups -= calibrating
    others, scored = made.split(calibrating)
    return scored, [*others.references, *others.texts]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table: 0 when it is done."""
    parser = argparse.ArgumentParser(prog="cpu_fidelity.py", description="Our CPU back-ends against fp32.")
    parser.add_argument("--texts", type=Path, help="references; default: the graded explanations")
    parser.add_argument("--groups", type=int, default=GROUPS, help=f"default: {GROUPS}")
    parser.add_argument("--out", type=Path, help="also write the results below this folder")
    options = parser.parse_args(arguments)
    console, source = wide_console(), provenance(CPU)
    groups, calibrating = scored_and_calibrating(options.texts, options.groups)
    checkpoint = load_checkpoint(DEFAULT_ENCODER)
    with tempfile.TemporaryDirectory() as exports:
        encoders = own_encoders(checkpoint, calibrating, Path(exports))
    right = embedding(checkpoint, encoders.pop("packed fp32"))
    expected = right(groups.references), right(groups.texts)
    name = "graded explanations" if options.texts is None else options.texts.name
    table = Table(title=f"{len(groups.texts)} scores, {name}, against our own in fp32\n{source['device']}")
    table.add_column("encoder")
    for column in FIDELITY_COLUMNS:
        table.add_column(column, justify="right")
    rows: list[dict[str, Any]] = []
    for encoder, made in encoders.items():
        embed = embedding(checkpoint, made)
        found = fidelity((embed(groups.references), embed(groups.texts)), expected)
        table.add_row(encoder, *found.cells())
        rows.append({"encoder": encoder, **asdict(found)})
    console.print(table)
    if options.out is not None:
        settings = {"texts": name, "groups": len(groups.references), "quick": False}
        content = {**source, "suite": "cpu_fidelity", "settings": settings, "rows": rows}
        console.print(f"wrote {write_results(options.out, 'cpu_fidelity', content)}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
