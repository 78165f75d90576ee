"""Hugging Face directories in and out, against transformers itself and on real trained models."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from torch import Tensor

from forethought.core import artefact, files
from forethought.core.errors import ArtefactError, CheckpointError, InputError, RunExistsError
from forethought.nn import (
    LanguageModel,
    TransformerConfig,
    load_language_model,
    num_parameters,
    read_language_model_config,
    save_language_model,
    special_token_ids,
)

transformers = pytest.importorskip("transformers")

Models = Callable[..., LanguageModel]
Tokens = Callable[..., Tensor]

SCALING = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 24,
}
BIASES = {"attention_bias": True, "mlp_bias": True}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama tied, one kv head": ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "llama biases": ("Llama", BIASES),
    "llama wide heads": ("Llama", {"head_dim": 16}),
    "llama3 scaling": ("Llama", {"rope_theta": 5000.0, "rope_scaling": SCALING, "head_dim": 16}),
    "llama3 scaling, short": ("Llama", {"rope_scaling": {**SCALING, "factor": 32.0, "low_freq_factor": 0.5}}),
    "llama large eps": ("Llama", {"rms_norm_eps": 0.05, "num_key_value_heads": 4}),
    "qwen2": ("Qwen2", {"rope_theta": 1e6}),
    "qwen2 tied, narrow heads": ("Qwen2", {"tie_word_embeddings": True, "head_dim": 4}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3 tied, biases": ("Qwen3", {"head_dim": 8, "tie_word_embeddings": True, "attention_bias": True}),
}


@pytest.fixture(autouse=True)
def global_randomness_restored() -> Iterator[None]:
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


def make_peer(case: str) -> Any:
    name, changes = CASES[case]
    shape: dict[str, Any] = {
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 96,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    }
    config = getattr(transformers, f"{name}Config")(**copy.deepcopy({**shape, **changes}))
    torch.manual_seed(7)
    peer = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return peer


def greedy(model: LanguageModel, tokens_BT: Tensor, num_new: int) -> Tensor:
    with torch.inference_mode():
        cache = model.new_cache(len(tokens_BT))
        logits = model(tokens_BT, cache=cache, logits_to_keep=1)
        for _ in range(num_new):
            new = logits[:, -1].argmax(-1, keepdim=True)
            tokens_BT = torch.cat([tokens_BT, new], dim=1)
            logits = model(new, cache=cache)
    return tokens_BT


def peer_greedy(peer: Any, tokens_BT: Tensor, num_new: int) -> Tensor:
    # Without an end token, both run to the same length.
    peer.generation_config.eos_token_id = None
    return peer.generate(
        tokens_BT, attention_mask=torch.ones_like(tokens_BT), max_new_tokens=num_new, do_sample=False, pad_token_id=0
    )


@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "sharded"])
@pytest.mark.parametrize("case", CASES)
def test_logits_and_greedy_tokens_equal_transformers(
    case: str, sharded: bool, tmp_path: Path, random_tokens: Tokens
) -> None:
    peer = make_peer(case)
    peer.save_pretrained(tmp_path / "theirs", max_shard_size="20KB" if sharded else "1GB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists() == sharded
    model = load_language_model(tmp_path / "theirs")
    assert num_parameters(model.config).total == sum(parameter.numel() for parameter in peer.parameters())
    tokens_BT = random_tokens(2, 96)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens_BT), peer(tokens_BT).logits, rtol=0, atol=1e-4)

    save_language_model(model, tmp_path / "ours", max_shard_bytes=20_000 if sharded else None)
    assert (tmp_path / "ours" / "model.safetensors.index.json").exists() == sharded
    back, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(back) is type(peer)
    for (name, left), (_, right) in zip(peer.named_parameters(), back.named_parameters(), strict=True):
        assert torch.equal(left, right), name
    assert back.dtype == torch.float32
    prompt = random_tokens(2, 9, seed=11)
    expected = peer_greedy(back.eval(), prompt, 24)
    assert torch.equal(greedy(model, prompt, 24), expected)


@pytest.mark.parametrize("shard_bytes", [None, 1, 9_000, 10**9])
@pytest.mark.parametrize("tied", [True, False])
def test_saving_and_loading_is_the_identity(
    tiny_model: Models, family: str, tied: bool, shard_bytes: int | None, tmp_path: Path
) -> None:
    model = tiny_model(family, tie_embeddings=tied)
    save_language_model(model, tmp_path / "m", max_shard_bytes=shard_bytes, extra_facts={"note": "x"})
    back = load_language_model(tmp_path / "m")
    assert back.config == model.config.resolved
    assert not back.training
    assert back.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, back.state_dict()[name]), name
    shards = sorted((tmp_path / "m").glob("model*.safetensors"))
    assert len(shards) == {None: 1, 1: len(model.state_dict()), 10**9: 1}.get(shard_bytes, len(shards))
    for shard in shards:
        with safe_open(shard, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
            largest = max(opened.get_tensor(name).numel() for name in opened.keys())  # noqa: SIM118
            assert shard_bytes is None or shard.stat().st_size < max(shard_bytes, 4 * largest) + 4000
    assert artefact.read_kind(tmp_path / "m") == "language-model"
    assert isinstance(artefact.load(tmp_path / "m"), LanguageModel)
    assert files.read_json(tmp_path / "m" / "artefact.json")["note"] == "x"


def test_types_are_stored_and_converted(tiny_model: Models, tmp_path: Path) -> None:
    model = tiny_model()
    save_language_model(model, tmp_path / "half", dtype="bfloat16")
    half, full = load_language_model(tmp_path / "half"), load_language_model(tmp_path / "half", dtype=torch.float32)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    for name, tensor in model.state_dict().items():
        assert torch.equal(half.state_dict()[name], tensor.bfloat16()), name
        assert torch.equal(full.state_dict()[name], tensor.bfloat16().float()), name
    assert half.rotary.inverse_frequencies.dtype == torch.float32
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "half")
    assert peer.dtype == torch.bfloat16
    for bad in ("int8", "float23"):
        with pytest.raises(InputError, match="bfloat16, float16, float32"):
            load_language_model(tmp_path / "half", dtype=bad)
        with pytest.raises(InputError, match="bfloat16, float16, float32"):
            save_language_model(model, tmp_path / "never", dtype=bad)
    with pytest.raises(InputError, match="nonsense"):
        load_language_model(tmp_path / "half", device="nonsense")
    with pytest.raises(InputError, match="max_shard_bytes"):
        save_language_model(model, tmp_path / "never", max_shard_bytes=0)
    assert not (tmp_path / "never").exists()


def test_an_existing_directory_is_replaced_only_when_told(tiny_model: Models, tmp_path: Path) -> None:
    first, second = tiny_model(seed=1), tiny_model(seed=2)
    save_language_model(first, tmp_path / "m")
    with pytest.raises(RunExistsError):
        save_language_model(second, tmp_path / "m")
    assert torch.equal(load_language_model(tmp_path / "m").norm.weight, first.norm.weight)  # type: ignore[arg-type]
    save_language_model(second, tmp_path / "m", replace=True)
    assert torch.equal(load_language_model(tmp_path / "m").norm.weight, second.norm.weight)  # type: ignore[arg-type]


def test_a_run_directory_stands_for_its_model(tiny_model: Models, tmp_path: Path) -> None:
    model = tiny_model()
    (tmp_path / "config.json").write_text('{"recipe": "x"}')
    save_language_model(model, tmp_path / "model")
    assert load_language_model(tmp_path).config == model.config.resolved
    assert read_language_model_config(tmp_path) == model.config.resolved


def test_a_flipped_byte_in_our_own_artefact_is_named(tiny_model: Models, tmp_path: Path) -> None:
    save_language_model(tiny_model(), tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_language_model(tmp_path / "m")


def make_tokenizer(*special: str, size: int = 20) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({f"w{index}": index for index in range(size)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in special])
    return tokenizer


@pytest.mark.parametrize(
    ("special", "bos", "eos"),
    [
        (("<|end|>",), 20, 20),
        (("<|stop|>",), 20, 20),
        (("<s>", "</s>"), 20, 21),
        (("<pad>", "<|endoftext|>"), None, 21),
        ((), None, None),
    ],
)
@pytest.mark.parametrize("given", ["object", "file", "directory"])
def test_a_tokenizer_travels_with_the_model(
    tiny_model: Models, tmp_path: Path, special: tuple[str, ...], bos: int | None, eos: int | None, given: str
) -> None:
    tokenizer = make_tokenizer(*special)
    (tmp_path / "t").mkdir()
    tokenizer.save(str(tmp_path / "t" / "tokenizer.json"))
    choice = {"object": tokenizer, "file": tmp_path / "t" / "tokenizer.json", "directory": str(tmp_path / "t")}[given]
    save_language_model(tiny_model(), tmp_path / "m", choice)
    back = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    assert back("w3 w5 w19").input_ids == [3, 5, 19]
    assert (back.bos_token_id, back.eos_token_id) == (bos, eos)
    assert special_token_ids(tmp_path / "m") == (bos, () if eos is None else (eos,))
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert peer.generation_config.eos_token_id == eos


@pytest.mark.parametrize("named", ["<|turn|>", {"content": "<|turn|>"}])
def test_the_tokens_named_beside_a_tokenizer_go_before_known_ones(
    tiny_model: Models, tmp_path: Path, named: object
) -> None:
    (tmp_path / "t").mkdir()
    make_tokenizer("<|endoftext|>", "<|turn|>").save(str(tmp_path / "t" / "tokenizer.json"))
    (tmp_path / "t" / "tokenizer_config.json").write_text(json.dumps({"eos_token": named, "bos_token": "<none>"}))
    save_language_model(tiny_model(), tmp_path / "m", tmp_path / "t")
    assert special_token_ids(tmp_path / "m") == (None, (21,))
    assert json.loads((tmp_path / "m" / "tokenizer_config.json").read_text())["eos_token"] == "<|turn|>"


@pytest.mark.parametrize("device", ["meta", "nonsense", "xla"])
def test_a_device_that_is_not_at_hand_is_refused(tiny_model: Models, tmp_path: Path, device: str) -> None:
    save_language_model(tiny_model(), tmp_path / "m")
    with pytest.raises(InputError, match=f"device '{device}'"):
        load_language_model(tmp_path / "m", device=device)


def test_a_tokenizer_that_does_not_fit_is_refused(tiny_model: Models, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ids up to 61"):
        save_language_model(tiny_model(), tmp_path / "m", make_tokenizer(size=62))
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(ArtefactError, match="no tokenizer"):
        save_language_model(tiny_model(), tmp_path / "m", tmp_path / "tokenizer.json")
    assert not (tmp_path / "m").exists()


def test_rope_keys_of_transformers_4_and_5_are_read_alike(tiny_model: Models, tmp_path: Path) -> None:
    save_language_model(tiny_model(), tmp_path / "m")
    values = json.loads((tmp_path / "m" / "config.json").read_text())
    for key in ("rope_theta", "rope_scaling", "rope_parameters"):
        del values[key]
    old = {**values, "rope_theta": 777.0, "rope_scaling": SCALING}
    new = {**values, "rope_parameters": {**SCALING, "rope_theta": 777.0}}
    oldest = {**values, "rope_theta": 777.0, "rope_scaling": {"type": "llama3", **SCALING}}
    both = {**old, **new}
    found: list[TransformerConfig] = []
    for number, content in enumerate((old, new, oldest, both)):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "config.json").write_text(json.dumps(content))
        found.append(read_language_model_config(tmp_path / str(number)))
    assert found[0].rope_theta == 777.0
    assert found[0].rope_scaling is not None
    assert found[0].rope_scaling.original_max_positions == 24
    assert all(config == found[0] for config in found)


@pytest.mark.parametrize("name", ["stories260K", "pair/draft", "pair/target"])
def test_real_models_equal_transformers_and_speak(name: str, shared_data: Path, tmp_path: Path) -> None:
    directory = shared_data / "models" / name
    model = load_language_model(directory)
    peer = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    story = name == "stories260K"
    text = "Once upon a time, there was a little girl named Lily. She" if story else "def add(a, b):\n    return a"
    ids = tokenizer.encode(text).ids
    tokens_BT = torch.tensor([ids])
    with torch.no_grad():
        logits = model(tokens_BT)
        torch.testing.assert_close(logits, peer(tokens_BT).logits, rtol=0, atol=1e-4)
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], tokens_BT[0, 1:])
    assert float(loss) < 0.6 * float(torch.tensor(float(model.config.vocab_size)).log())
    ours = greedy(model, tokens_BT, 32)
    assert torch.equal(ours, peer_greedy(peer, tokens_BT, 32))
    if story:
        assert "lily" in tokenizer.decode(ours[0, len(ids) :].tolist()).lower()
    save_language_model(model, tmp_path / "m", directory)
    assert special_token_ids(tmp_path / "m") == special_token_ids(directory)
