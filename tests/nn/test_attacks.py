"""Directories from strangers: each hostile one is refused, by name, before anything is allocated or run."""

from __future__ import annotations

import json
import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from forethought.core.errors import ArtefactError
from forethought.nn import LanguageModel, load_language_model, save_language_model, special_token_ids

Models = Callable[..., LanguageModel]
LEFT_OUT = object()


@pytest.fixture
def victim(tiny_model: Models, tmp_path: Path) -> Path:
    """A good model directory as a stranger would ship it: no manifest, no artefact.json."""
    save_language_model(tiny_model(), tmp_path / "victim")
    for name in ("manifest.json", "artefact.json"):
        (tmp_path / "victim" / name).unlink()
    load_language_model(tmp_path / "victim")
    return tmp_path / "victim"


@pytest.fixture
def sharded(tiny_model: Models, tmp_path: Path) -> Path:
    save_language_model(tiny_model(), tmp_path / "sharded", max_shard_bytes=10_000)
    for name in ("manifest.json", "artefact.json"):
        (tmp_path / "sharded" / name).unlink()
    load_language_model(tmp_path / "sharded")
    return tmp_path / "sharded"


def refuse(directory: Path, part: str) -> None:
    """The load fails with a named error and holds little memory meanwhile."""
    tracemalloc.start()
    try:
        with pytest.raises(ArtefactError, match=part) as caught:
            load_language_model(directory)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 << 20
    assert len(str(caught.value)) < 1500


def set_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not LEFT_OUT}))


def set_header(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = directory / "model.safetensors"
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    change(header)
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data[8 + size :])


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth"])
def test_pickled_weights_are_never_opened(victim: Path, name: str) -> None:
    (victim / "model.safetensors").unlink()
    (victim / name).write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    refuse(victim, f"{name}, a pickle, which is refused")
    assert not Path("ran").exists()


def test_missing_weights_are_named(victim: Path) -> None:
    (victim / "model.safetensors").unlink()
    refuse(victim, "holds neither")
    refuse(victim / "nowhere", "not a directory")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"abc",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 1 << 30) + b"{}" + b" " * 100_000,
        struct.pack("<Q", 17 << 20) + b"{" * (17 << 20) + b"0" * 9,
        struct.pack("<Q", 100_000) + b"[" * 100_000 + b"0" * 60_000,
        struct.pack("<Q", 8) + b"\xff" * 8 + b"0" * 200_000,
        struct.pack("<Q", 2) + b"{}" + b"0" * 200_000,
    ],
    ids=["empty", "short", "header 2**63", "header beyond file", "header 17 MiB", "nested", "not UTF-8", "unclaimed"],
)
def test_forged_safetensors_headers_are_refused(victim: Path, data: bytes) -> None:
    (victim / "model.safetensors").write_bytes(data)
    refuse(victim, r"model\.safetensors|declares")


EMBEDDING = "model.embed_tokens.weight"


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda h: h[EMBEDDING].update(data_offsets=[0, 2**62], shape=[2**60]), "no valid safetensors"),
        (lambda h: h[EMBEDDING].update(shape=[2**40, 2**40]), "no valid safetensors"),
        (lambda h: h[EMBEDDING].update(data_offsets=[64, 0]), "no valid safetensors"),
        (lambda h: h[EMBEDDING].update(data_offsets=h["model.norm.weight"]["data_offsets"]), "no valid safetensors"),
        (lambda h: h[EMBEDDING].update(shape=[32, 61]), "has shape"),
        (lambda h: h[EMBEDDING].update(dtype="I32"), "has type"),
        (lambda h: h[EMBEDDING].update(dtype="P32"), "no valid safetensors"),
        (lambda h: h.update({"model.extra": h.pop("model.norm.weight")}), r"lacks 'model\.norm\.weight'"),
        (lambda h: h.pop("model.norm.weight"), "no valid safetensors"),
    ],
    ids=["beyond file", "overflow", "backwards", "overlap", "shape", "integer", "type", "renamed", "hole"],
)
def test_forged_tensors_are_refused(victim: Path, change: Callable[[dict[str, Any]], None], part: str) -> None:
    set_header(victim, change)
    refuse(victim, part)


def test_an_endless_header_is_refused_before_it_is_parsed(victim: Path) -> None:
    (victim / "model.safetensors").write_bytes(struct.pack("<Q", 17 << 20) + b"{" * (17 << 20) + b"0" * 9)
    refuse(victim, "declares a header of 17825792")


def test_a_truncated_file_is_refused(victim: Path) -> None:
    path = victim / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    refuse(victim, "no valid safetensors")


def test_an_additional_tensor_is_refused(tiny_model: Models, victim: Path) -> None:
    set_config(victim, num_hidden_layers=1)
    refuse(victim, r"unexpected 'model\.layers\.1")


@pytest.mark.parametrize(
    "name",
    [
        "../victim2/model.safetensors",
        "/etc/passwd.safetensors",
        "..\\x.safetensors",
        "a/b.safetensors",
        "..",
        "model.bin",
        "x\0.safetensors",
        "",
        7,
        None,
    ],
)
def test_an_index_cannot_name_files_elsewhere(sharded: Path, name: object) -> None:
    path = sharded / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    (sharded.parent / "victim2").mkdir()
    (sharded / "a").mkdir()
    for copy in ("victim2/model.safetensors", "sharded/a/b.safetensors"):
        (sharded.parent / copy).write_bytes((sharded / index["weight_map"][EMBEDDING]).read_bytes())
    index["weight_map"][EMBEDDING] = name
    path.write_text(json.dumps(index))
    refuse(sharded, "plain file name|only .safetensors")


def test_an_index_that_lies_is_refused(sharded: Path) -> None:
    path = sharded / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    first, other = index["weight_map"][EMBEDDING], index["weight_map"]["model.norm.weight"]
    assert first != other
    for weight_map, part in (
        ({**index["weight_map"], EMBEDDING: other}, "does not place there"),
        ({**index["weight_map"], "model.ghost": other}, "lacks tensor 'model.ghost'"),
        ({**index["weight_map"], EMBEDDING: "model-9.safetensors"}, "does not exist"),
        ({}, "no weight_map"),
        ([1], "no weight_map"),
    ):
        path.write_text(json.dumps({**index, "weight_map": weight_map}))
        refuse(sharded, part)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_links_out_of_the_directory_are_not_followed(victim: Path, name: str) -> None:
    outside = victim.parent / "secret"
    (victim / name).rename(outside)
    (victim / name).symlink_to(outside)
    refuse(victim, "outside its directory")


def test_a_link_inside_the_directory_is_followed(victim: Path) -> None:
    (victim / "model.safetensors").rename(victim / "blob")
    (victim / "model.safetensors").symlink_to("blob")
    load_language_model(victim)


def test_a_pipe_or_folder_in_place_of_a_file_does_not_hang(victim: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        (victim / name).rename(victim / "kept")
        os.mkfifo(victim / name)
        refuse(victim, "regular file")
        (victim / name).unlink()
        (victim / name).mkdir()
        refuse(victim, "regular file")
        (victim / name).rmdir()
        (victim / "kept").rename(victim / name)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"model_type": "mamba", "auto_map": {"AutoModel": "evil.Model"}}, "llama, qwen2, qwen3.*never run"),
        ({"model_type": ["llama"]}, "model_type"),
        ({"hidden_size": 2**24, "vocab_size": 2**24}, "not a multiple|declares|parameters"),
        ({"num_hidden_layers": 4096}, "declares"),
        ({"num_hidden_layers": 10**18}, "num_hidden_layers"),
        ({"intermediate_size": 2**24}, "declares"),
        ({"vocab_size": -1}, "vocab_size"),
        ({"vocab_size": "61"}, "vocab_size"),
        ({"vocab_size": True}, "vocab_size"),
        ({"vocab_size": None}, "vocab_size"),
        ({"vocab_size": 61.0}, "vocab_size"),
        ({"hidden_size": {"a": "x" * 100_000}}, "hidden_size"),
        ({"num_key_value_heads": 3}, "num_kv_heads"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported; allowed: 'silu'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"sliding_window": 8}, "sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type = 'yarn'.*default, llama3"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "factor|original"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "rope_parameters"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}, "rope_scaling": {"type": "default"}}, "says"),
        ({"rope_theta": 0, "rope_parameters": None}, "rope_theta"),
    ],
)
def test_configs_that_ask_for_too_much_or_something_else_are_refused(
    victim: Path, changes: dict[str, Any], part: str
) -> None:
    set_config(victim, **changes)
    refuse(victim, part)


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, True),
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}, False),
        ({"use_sliding_window": False, "sliding_window": 8, "max_window_layers": 0}, False),
        ({"use_sliding_window": True, "sliding_window": None}, False),
        ({"use_sliding_window": True, "sliding_window": LEFT_OUT, "max_window_layers": 0}, True),
    ],
)
def test_a_sliding_window_is_refused_only_where_it_is_in_use(
    tiny_model: Models, tmp_path: Path, changes: dict[str, Any], refused: bool
) -> None:
    save_language_model(tiny_model("qwen2"), tmp_path / "m")
    (tmp_path / "m" / "artefact.json").unlink()
    set_config(tmp_path / "m", **changes)
    if refused:
        refuse(tmp_path / "m", "sliding_window")
    else:
        load_language_model(tmp_path / "m")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", "[" * 100_000, '{"model_type": ' + "1" * 5000 + "}", '{"x": "' + "y" * (2 << 20) + '"}', "\udcff"],
    ids=["empty", "list", "open", "deep", "long number", "2 MiB", "not UTF-8"],
)
def test_malformed_configs_are_refused(victim: Path, text: str) -> None:
    (victim / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    refuse(victim, r"config\.json")


def test_harmless_foreign_keys_are_read_past(victim: Path) -> None:
    set_config(victim, auto_map={"AutoModel": "evil.Model"}, attention_dropout=0.1, pretraining_tp=2, anything=[1])
    (victim / "evil.py").write_text("raise SystemExit")
    load_language_model(victim)


def test_a_stored_head_of_a_tied_model_must_be_the_embedding(tiny_model: Models, tmp_path: Path) -> None:
    model = tiny_model(tie_embeddings=False)
    save_language_model(model, tmp_path / "m")
    (tmp_path / "m" / "artefact.json").unlink()
    set_config(tmp_path / "m", tie_word_embeddings=True)
    refuse(tmp_path / "m", "differs from")
    with torch.no_grad():
        assert model.unembedding is not None
        model.unembedding.weight.copy_(model.embedding.weight)
    save_language_model(model, tmp_path / "n")
    (tmp_path / "n" / "artefact.json").unlink()
    set_config(tmp_path / "n", tie_word_embeddings=True)
    assert load_language_model(tmp_path / "n").unembedding is None


def test_an_artefact_of_another_kind_is_refused(victim: Path) -> None:
    (victim / "artefact.json").write_text('{"format": 1, "kind": "corpus"}')
    refuse(victim, "holds a corpus")


@pytest.mark.parametrize("token", [-1, "x", True, [1, "y"], {"a": 1}])
def test_malformed_token_ids_are_refused(victim: Path, token: object) -> None:
    (victim / "generation_config.json").write_text(json.dumps({"eos_token_id": token}))
    with pytest.raises(ArtefactError, match="token id"):
        special_token_ids(victim)
