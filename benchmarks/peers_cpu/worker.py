"""One peer in a process of its own, in the peers' environment: texts in, seconds and vectors out.

    python worker.py PEER --model FOLDER --work FOLDER --threads N

Nothing of fastreward is imported: what the peers need may be older than what fastreward needs. A line of JSON
is one request and one line is the answer; everything that a library prints goes to stderr.

    {"load": [texts to calibrate on], "tune": [texts]} → {"loaded": what it is, "batch_size": N}
    {"embed": [[texts], …], "to": FILE or null}        → {"seconds": S}, vectors of all lists in FILE (.npy)

`embed` encodes one list of texts after another; its clock runs from the first text to the last vector.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Embed = Callable[[Sequence[str], int], np.ndarray]
"""Texts and the size of a batch → vectors [N, D]."""

DEFAULT_BATCH = 32
BATCHES = (8, 16, 32, 64, 128)

MAX_LENGTH = 256  # of all-MiniLM-L6-v2


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    load, tuned = PEERS[options.peer]
    embed: Embed | None = None
    batch_size = DEFAULT_BATCH
    for line in sys.stdin:
        request = json.loads(line)
        if "load" in request:
            embed = load(Setting(options.model, options.work, options.threads, request["load"]))
            if tuned:
                batch_size = fastest_batch(embed, request["tune"])
            answer: dict[str, Any] = {"loaded": versions(), "batch_size": batch_size}
        else:
            assert embed is not None
            start = time.perf_counter()
            vectors = [embed(texts, batch_size) for texts in request["embed"]]
            answer = {"seconds": time.perf_counter() - start}
            if request["to"] is not None:
                np.save(request["to"], np.concatenate(vectors))
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def fastest_batch(embed: Embed, texts: Sequence[str]) -> int:
    """The size of a batch with which these texts are embedded fastest, the first pass of each thrown away."""
    seconds = {}
    for size in BATCHES:
        embed(texts, size)
        start = time.perf_counter()
        embed(texts, size)
        seconds[size] = time.perf_counter() - start
    return min(seconds, key=seconds.__getitem__)


def versions() -> dict[str, str]:
    from importlib import metadata

    names = (
        "sentence-transformers torch transformers onnxruntime openvino optimum-intel optimum-onnx nncf "
        "ctranslate2 fastembed"
    )
    return {name: metadata.version(name) for name in names.split()}


class Setting:
    """The model's folder, a folder to convert it into, threads, and texts to calibrate on."""

    def __init__(self, model: Path, work: Path, threads: int, texts: Sequence[str]) -> None:
        self.model, self.work, self.threads, self.texts = model, work, threads, list(texts)

    def converted(
        self, name: str, convert: Callable[[Path], object], calibrating: Sequence[str] = ()
    ) -> Path:
        """A folder in `work` that `convert` makes where it is not there.

        Its name ends in a digest of all that it is made from: the model, the texts that it is calibrated on,
        and the versions of what converts it. What another run made from something else is not taken.
        """
        folder = self.work / f"{name}-{digest(self.model, calibrating)}"
        if not folder.exists():
            partial = folder.with_name(f"{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            convert(partial)
            partial.rename(folder)
        return folder


def digest(model: Path, texts: Sequence[str]) -> str:
    """12 hexadecimal digits of a model's files, of texts and of the packages' versions."""
    found = hashlib.sha256(json.dumps([versions(), list(texts)], sort_keys=True).encode())
    for path in sorted(path for path in model.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        found.update(f"{path.relative_to(model)} {content}\n".encode())
    return found.hexdigest()[:12]


# ------------------------------------------------------------------------- sentence-transformers


def of_sentence_transformer(model: Any) -> Embed:
    def embed(texts: Sequence[str], batch_size: int) -> np.ndarray:
        return model.encode(list(texts), batch_size=batch_size, show_progress_bar=False)

    return embed


def torch_model(setting: Setting, dtype: str | None = None) -> Embed:
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(setting.threads)
    kwargs = {} if dtype is None else {"torch_dtype": getattr(torch, dtype)}
    model = SentenceTransformer(str(setting.model), device="cpu", model_kwargs=kwargs)
    embed = of_sentence_transformer(model)
    if dtype is None:
        return embed
    # NumPy has no bf16: the library itself returns fp32 arrays of such vectors.
    return lambda texts, size: np.asarray(embed(texts, size), dtype=np.float32)


def torch_bf16(setting: Setting) -> Embed:
    return torch_model(setting, "bfloat16")


def onnx_kwargs(setting: Setting) -> dict[str, Any]:
    import onnxruntime

    session = onnxruntime.SessionOptions()
    session.intra_op_num_threads = setting.threads
    return {"provider": "CPUExecutionProvider", "session_options": session}


def exported_onnx(setting: Setting) -> Path:
    from sentence_transformers import SentenceTransformer

    def convert(folder: Path) -> None:
        copy_model(setting, folder)
        kwargs = {"provider": "CPUExecutionProvider", "export": True}
        SentenceTransformer(str(folder), backend="onnx", model_kwargs=kwargs).save_pretrained(str(folder))

    return setting.converted("onnx", convert)


def copy_model(setting: Setting, folder: Path) -> None:
    shutil.copytree(setting.model, folder)


def onnx_file(setting: Setting, file_name: str) -> Embed:
    from sentence_transformers import SentenceTransformer

    kwargs = {**onnx_kwargs(setting), "file_name": file_name}
    model = SentenceTransformer(str(exported_onnx(setting)), backend="onnx", model_kwargs=kwargs)
    return of_sentence_transformer(model)


def onnx_fp32(setting: Setting) -> Embed:
    return onnx_file(setting, "onnx/model.onnx")


def onnx_optimized(setting: Setting) -> Embed:
    from sentence_transformers import SentenceTransformer, export_optimized_onnx_model

    folder = exported_onnx(setting)
    if not (folder / "onnx" / "model_O3.onnx").exists():
        model = SentenceTransformer(str(folder), backend="onnx", model_kwargs=onnx_kwargs(setting))
        export_optimized_onnx_model(model, "O3", str(folder))
    return onnx_file(setting, "onnx/model_O3.onnx")


def onnx_int8(setting: Setting) -> Embed:
    from sentence_transformers import SentenceTransformer, export_dynamic_quantized_onnx_model

    folder = exported_onnx(setting)
    if not (folder / "onnx" / "model_qint8_avx512_vnni.onnx").exists():
        model = SentenceTransformer(str(folder), backend="onnx", model_kwargs=onnx_kwargs(setting))
        export_dynamic_quantized_onnx_model(model, "avx512_vnni", str(folder))
    return onnx_file(setting, "onnx/model_qint8_avx512_vnni.onnx")


def exported_openvino(setting: Setting) -> Path:
    from sentence_transformers import SentenceTransformer

    def convert(folder: Path) -> None:
        copy_model(setting, folder)
        model = SentenceTransformer(str(folder), backend="openvino", model_kwargs={"export": True})
        model.save_pretrained(str(folder))

    return setting.converted("openvino", convert)


def openvino_file(setting: Setting, folder: Path, file_name: str, **config: str) -> Embed:
    from sentence_transformers import SentenceTransformer

    ov_config = {"INFERENCE_NUM_THREADS": str(setting.threads), **config}
    kwargs = {"file_name": file_name, "ov_config": ov_config}
    model = SentenceTransformer(str(folder), backend="openvino", model_kwargs=kwargs)
    return of_sentence_transformer(model)


def openvino_model(setting: Setting, **config: str) -> Embed:
    return openvino_file(setting, exported_openvino(setting), "openvino/openvino_model.xml", **config)


def openvino_default(setting: Setting) -> Embed:
    return openvino_model(setting)


def openvino_fp32(setting: Setting) -> Embed:
    return openvino_model(setting, INFERENCE_PRECISION_HINT="f32")


def openvino_bf16(setting: Setting) -> Embed:
    return openvino_model(setting, INFERENCE_PRECISION_HINT="bf16")


def openvino_int8(setting: Setting) -> Embed:
    from optimum.intel.openvino import OVQuantizationConfig
    from sentence_transformers import SentenceTransformer, export_static_quantized_openvino_model

    def convert(folder: Path) -> None:
        shutil.copytree(exported_openvino(setting), folder)
        data = folder / "calibration"
        data.mkdir()
        rows = "".join(json.dumps({"text": text}) + "\n" for text in setting.texts)
        (data / "train.jsonl").write_text(rows, encoding="utf-8")
        model = SentenceTransformer(str(folder), backend="openvino")
        export_static_quantized_openvino_model(
            model,
            OVQuantizationConfig(num_samples=len(setting.texts)),
            str(folder),
            dataset_name=str(data),
            dataset_config_name="default",
            dataset_split="train",
            column_name="text",
        )

    folder = setting.converted("openvino-int8", convert, setting.texts)
    return openvino_file(setting, folder, "openvino/openvino_model_qint8_quantized.xml")


# --------------------------------------------------------------------- CTranslate2 and fastembed


def ctranslate2(setting: Setting, compute_type: str) -> Embed:
    import ctranslate2 as ct2
    from tokenizers import Tokenizer

    def convert(folder: Path) -> None:
        kind = compute_type if compute_type == "int8" else None
        ct2.converters.TransformersConverter(str(setting.model)).convert(str(folder), quantization=kind)

    folder = setting.converted(f"ctranslate2-{compute_type}", convert)
    encoder = ct2.Encoder(str(folder), device="cpu", compute_type=compute_type, intra_threads=setting.threads)
    tokenizer = Tokenizer.from_file(str(setting.model / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_LENGTH)

    def embed(texts: Sequence[str], batch_size: int) -> np.ndarray:
        token_ids = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
        order = sorted(range(len(texts)), key=lambda row: -len(token_ids[row]))
        pooled = np.empty((len(texts), 384), dtype=np.float32)
        for first in range(0, len(order), batch_size):
            rows = order[first : first + batch_size]
            output = encoder.forward_batch([token_ids[row] for row in rows])
            hidden = np.asarray(output.last_hidden_state)
            for line, row in enumerate(rows):
                pooled[row] = hidden[line, : len(token_ids[row])].mean(axis=0)
        return pooled / np.linalg.norm(pooled, axis=1, keepdims=True)

    return embed


def ctranslate2_fp32(setting: Setting) -> Embed:
    return ctranslate2(setting, "float32")


def ctranslate2_int8(setting: Setting) -> Embed:
    return ctranslate2(setting, "int8")


def fastembed(setting: Setting) -> Embed:
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    def convert(folder: Path) -> None:
        shutil.copytree(exported_onnx(setting), folder)
        path = folder / "tokenizer_config.json"
        # It cuts texts at the least of these, of which one is shorter than what the model is used with.
        limits = {"max_length": MAX_LENGTH, "model_max_length": MAX_LENGTH}
        path.write_text(json.dumps({**json.loads(path.read_text()), **limits}))

    folder = setting.converted("fastembed", convert)
    TextEmbedding.add_custom_model(
        model="local/all-MiniLM-L6-v2",
        pooling=PoolingType.MEAN,
        normalization=True,
        sources=ModelSource(hf="local/all-MiniLM-L6-v2"),
        dim=384,
        model_file="onnx/model.onnx",
    )
    model = TextEmbedding("local/all-MiniLM-L6-v2", specific_model_path=str(folder), threads=setting.threads)
    return lambda texts, size: np.stack(list(model.embed(list(texts), batch_size=size)))


# By name: what loads it, and whether the size of its batches is tuned.
PEERS: dict[str, tuple[Callable[[Setting], Embed], bool]] = {
    "sentence-transformers": (torch_model, False),
    "sentence-transformers, tuned": (torch_model, True),
    "sentence-transformers bf16": (torch_bf16, True),
    "sentence-transformers onnx": (onnx_fp32, True),
    "sentence-transformers onnx O3": (onnx_optimized, True),
    "sentence-transformers onnx int8": (onnx_int8, True),
    "sentence-transformers openvino": (openvino_default, True),
    "sentence-transformers openvino fp32": (openvino_fp32, True),
    "sentence-transformers openvino bf16": (openvino_bf16, True),
    "sentence-transformers openvino int8": (openvino_int8, True),
    "ctranslate2 fp32": (ctranslate2_fp32, True),
    "ctranslate2 int8": (ctranslate2_int8, True),
    "fastembed": (fastembed, True),
}


if __name__ == "__main__":
    main()
