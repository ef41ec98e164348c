"""What lies in the folder of an export: a manifest that names it and vouches for every file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, get_args

from fastreward.encoders.checkpoint import POOLING_NAMES, Checkpoint
from fastreward.encoders.onnx_nodes import GraphPrecision
from fastreward.errors import CheckpointError
from fastreward.ops.pooled_cosine import POOLINGS, Pooling

MANIFEST: Final = "manifest.json"
MODEL: Final = "model.onnx"
FORMAT: Final = "fastreward ONNX 2"
"""The kind of manifest; another number is another layout of the folder or another interface of the graph."""


@dataclass(frozen=True)
class Manifest:
    """What an export is.

    Attributes:
        encoder: The name or path that it was made from.
        revision: The commit on the hub, where it came from there.
        source_sha256: Digest of the files and options that it was made from.
        family: `model_type` of config.json.
        hidden_size: D.
        num_layers: Layers in the graph.
        pooling: How a text's hidden states become one vector.
        precision: What the graph multiplies in.
        opset: Of the standard operators.
        versions: Of the packages that wrote it.
        largest_drift: Over the texts it was held against the packed encoder on, in fp32: the longest
            difference between two vectors of a text, both of unit length.
        rms_drift: Their root mean square.
        files: SHA-256 of every other file in the folder, by name.
        format: Of this manifest.
    """

    encoder: str
    revision: str | None
    source_sha256: str
    family: str
    hidden_size: int
    num_layers: int
    pooling: Pooling
    precision: GraphPrecision
    opset: int
    versions: Mapping[str, str]
    largest_drift: float
    rms_drift: float
    files: Mapping[str, str] = field(default_factory=dict)
    format: str = FORMAT


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a folder, whose other files are all there, with a digest of its own."""
    content = asdict(manifest)
    text = json.dumps({**content, "sha256": _own_digest(content)}, indent=2)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Read a manifest, without looking at the files that it vouches for.

    Raises:
        CheckpointError: If there is none, or it is damaged or of another kind.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"an encoder that fastreward exported, with its {MANIFEST}",
            f"none in {folder}",
            "Export one: fastreward export ENCODER --to FOLDER.",
        ) from error
    except (ValueError, OSError) as error:
        raise _damaged(f"a readable {MANIFEST}", f"{path}: {error}") from error
    kind = content.get("format") if isinstance(content, dict) else None
    if kind != FORMAT:
        raise _damaged(f"a manifest of the format {FORMAT!r}", f"{kind!r} in {path}")
    written = content.pop("sha256", None)
    names = {f.name for f in fields(Manifest)}
    sound = (
        content.keys() == names
        and content["precision"] in get_args(GraphPrecision)
        and content["pooling"] in POOLINGS
        and all(_whole(content[name]) for name in ("hidden_size", "num_layers", "opset"))
        and _texts(content["files"])
        and MODEL in content["files"]
    )
    if not sound:
        raise _damaged("a manifest as it was written", f"other entries in {path}")
    if written != _own_digest(content):
        raise _damaged("a manifest as it was written", f"a changed one, {path}")
    return Manifest(**content)


def check_files(folder: Path, manifest: Manifest) -> None:
    """Compare every file with the digest that the manifest has of it.

    Raises:
        CheckpointError: If one is missing or is not the one that was exported.
    """
    for name, expected in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise _damaged(f"{name} beside its {MANIFEST}", f"none in {folder}")
        found = sha256(path)
        if found != expected:
            raise _damaged(
                f"the {name} that was exported (sha256 {expected[:12]}…)",
                f"another or a damaged one, {path} (sha256 {found[:12]}…)",
            )


def _own_digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in a folder and below it, by relative name."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path) for path in paths}


def revision_of(checkpoint: Checkpoint) -> str | None:
    """Return the commit that a checkpoint was downloaded at: the hub's cache has it in the path."""
    parts = checkpoint.folder.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts[:-1] else None


def write_settings(folder: Path, checkpoint: Checkpoint, num_layers: int, pooling: Pooling) -> None:
    """Write what scoring needs beside the model, as sentence-transformers lays it out.

    `load_checkpoint` reads the folder as an encoder of `num_layers` layers with `pooling`.
    """
    names = {ours: theirs for theirs, ours in POOLING_NAMES.items()}
    prompts = dict(checkpoint.prompts)
    default = next((name for name, text in prompts.items() if text == checkpoint.default_prompt), None)
    parts = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    content: dict[str, Any] = {
        "config.json": _first_layers(checkpoint.config, num_layers),
        "sentence_bert_config.json": {
            "max_seq_length": checkpoint.max_seq_length,
            "do_lower_case": checkpoint.lowercase,
        },
        "config_sentence_transformers.json": {
            "prompts": prompts,
            "default_prompt_name": default if checkpoint.default_prompt else None,
        },
        "modules.json": [
            {"idx": idx, "name": str(idx), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for idx, (kind, path) in enumerate(parts.items())
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": checkpoint.architecture.hidden_size,
            "pooling_mode": names[pooling],
            "include_prompt": checkpoint.pools_prompt,
        },
    }
    for name, value in content.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "tokenizer.json").write_bytes(checkpoint.tokenizer_file.read_bytes())


def _first_layers(config: Mapping[str, Any], num_layers: int) -> dict[str, Any]:
    cut = {**config, "num_hidden_layers": num_layers}
    if isinstance(kinds := config.get("layer_types"), list):
        cut["layer_types"] = kinds[:num_layers]
    return cut


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _texts(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _damaged(expected: str, received: str) -> CheckpointError:
    return CheckpointError(expected, received, "Remove the folder and export the encoder again.")
