"""What every family of language model must do; a new entry of FAMILIES runs through all of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from forethought.core.errors import ConfigError, InputError
from forethought.nn import (
    DenseCache,
    LanguageModel,
    TransformerConfig,
    document_mask,
    document_positions,
    initialise,
)

Models = Callable[..., LanguageModel]
Configs = Callable[..., TransformerConfig]
Tokens = Callable[..., Tensor]


def close(left: Tensor, right: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(left, right, rtol=0, atol=atol)


@torch.no_grad()
def test_a_later_token_changes_no_earlier_logit(tiny_model: Models, random_tokens: Tokens, family: str) -> None:
    model, tokens_BT = tiny_model(family), random_tokens(2, 12)
    changed = tokens_BT.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 61
    difference = (model(tokens_BT) - model(changed)).abs().amax(dim=(0, 2))
    assert difference[:7].max() == 0
    assert difference[7:].min() > 1e-4


@torch.no_grad()
def test_rows_of_a_batch_do_not_touch_each_other(tiny_model: Models, random_tokens: Tokens, family: str) -> None:
    model, tokens_BT = tiny_model(family), random_tokens(4, 12)
    whole = model(tokens_BT)
    for row in range(4):
        close(model(tokens_BT[row : row + 1]), whole[row : row + 1])
    other = tokens_BT.clone()
    other[2] = 0
    assert torch.equal(model(other)[[0, 1, 3]], whole[[0, 1, 3]])


@settings(deadline=None, max_examples=15)
@given(cuts=st.lists(st.integers(1, 23), max_size=6), name=st.sampled_from(["llama", "qwen2", "qwen3"]))
def test_a_cache_in_any_chunks_equals_no_cache(
    tiny_model: Models, random_tokens: Tokens, cuts: list[int], name: str
) -> None:
    model, tokens_BT = tiny_model(name), random_tokens(2, 24)
    edges = [0, *sorted(set(cuts)), 24]
    with torch.inference_mode():
        cache = model.new_cache(2, 24)
        pieces = [model(tokens_BT[:, start:end], cache=cache) for start, end in itertools.pairwise(edges)]
        close(torch.cat(pieces, dim=1), model(tokens_BT))
    assert cache.length == 24


@torch.inference_mode()
def test_a_rejected_draft_leaves_no_trace(tiny_model: Models, random_tokens: Tokens, family: str) -> None:
    model, tokens_BT, draft_BT = tiny_model(family), random_tokens(2, 20), random_tokens(2, 6, seed=8)
    cache = model.new_cache(2, 32)
    model(tokens_BT[:, :10], cache=cache)
    model(draft_BT, cache=cache)
    cache.truncate(10)
    close(model(tokens_BT[:, 10:], cache=cache), model(tokens_BT)[:, 10:])


@torch.inference_mode()
def test_selected_rows_go_on_as_they_were(tiny_model: Models, random_tokens: Tokens, family: str) -> None:
    model, tokens_BT = tiny_model(family), random_tokens(3, 9)
    rows = torch.tensor([2, 0, 0, 2])
    cache = model.new_cache(3, 16)
    model(tokens_BT[:, :5], cache=cache)
    cache.select(rows)
    close(model(tokens_BT[rows, 5:], cache=cache), model(tokens_BT)[rows, 5:])


@torch.no_grad()
def test_packed_documents_equal_documents_apart(tiny_model: Models, random_tokens: Tokens, family: str) -> None:
    model = tiny_model(family)
    first, second = random_tokens(1, 7), random_tokens(1, 9, seed=4)
    documents_BT = torch.tensor([[0] * 7 + [1] * 9])
    packed = model(
        torch.cat([first, second], dim=1),
        mask=document_mask(documents_BT),
        positions=document_positions(documents_BT),
    )
    close(packed, torch.cat([model(first), model(second)], dim=1))


@torch.no_grad()
def test_a_mask_narrows_causality_and_never_widens_it(tiny_model: Models, random_tokens: Tokens, family: str) -> None:
    model, tokens_BT = tiny_model(family), random_tokens(2, 8)
    close(model(tokens_BT, mask=torch.ones(8, 8, dtype=torch.bool)), model(tokens_BT))


@torch.inference_mode()
def test_a_token_tree_scores_each_branch_as_a_sequence(tiny_model: Models, random_tokens: Tokens, family: str) -> None:
    model, prefix = tiny_model(family), random_tokens(1, 5)
    cache = model.new_cache(1, 16)
    model(prefix, cache=cache)
    # Two branches behind the prefix: tokens a -> b, and c -> d, laid out a, c, b, d.
    tree = torch.tensor([[11, 12, 13, 14]])
    parents = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1]], dtype=torch.bool)
    mask = torch.cat([torch.ones(4, 5, dtype=torch.bool), parents], dim=1)
    logits = model(tree, cache=cache, mask=mask, positions=torch.tensor([5, 5, 6, 6]))
    for branch, places in (([11, 13], [0, 2]), ([12, 14], [1, 3])):
        alone = model(torch.cat([prefix, torch.tensor([branch])], dim=1))[:, -2:]
        close(logits[:, places], alone)


@torch.no_grad()
def test_left_padding_with_mask_and_positions_is_invisible(
    tiny_model: Models, random_tokens: Tokens, family: str
) -> None:
    model, tokens_BT = tiny_model(family), random_tokens(1, 8)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.int64), tokens_BT], dim=1)
    mask = torch.ones(1, 11, 11, dtype=torch.bool)
    mask[:, :, :3] = False
    positions = torch.arange(-3, 8).clamp(min=0)
    close(model(padded, mask=mask, positions=positions)[:, 3:], model(tokens_BT))


@torch.no_grad()
def test_the_head_can_be_kept_for_the_last_tokens(tiny_model: Models, random_tokens: Tokens, family: str) -> None:
    model, tokens_BT = tiny_model(family, tie_embeddings=False), random_tokens(2, 8)
    whole = model(tokens_BT)
    assert model(tokens_BT, logits_to_keep=2).shape == (2, 2, 61)
    close(model(tokens_BT, logits_to_keep=2), whole[:, -2:])
    close(model.head(model.hidden(tokens_BT)), whole)
    with pytest.raises(InputError, match="logits_to_keep"):
        model(tokens_BT, logits_to_keep=0)


@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_gets_gradient(tiny_config: Configs, random_tokens: Tokens, family: str, tied: bool) -> None:
    model = LanguageModel(tiny_config(family, tie_embeddings=tied))
    tokens_BT = random_tokens(2, 12)
    logits = model(tokens_BT[:, :-1])
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens_BT[:, 1:].flatten()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0 or name.endswith("key.bias"), name


def test_the_first_state_depends_on_seed_name_and_shape_alone(tiny_config: Configs, family: str) -> None:
    config = tiny_config(family)
    model, again = LanguageModel(config, seed=4), LanguageModel(config, seed=9)
    initialise(again, 4)
    deeper = LanguageModel(tiny_config(family, num_layers=3, tie_embeddings=False), seed=4)
    other = LanguageModel(config, seed=5)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
        scaled = name.endswith(("attention.output.weight", "mlp.down.weight"))
        expected = tensor * (2 / 3) ** 0.5 if scaled else tensor
        torch.testing.assert_close(deeper.state_dict()[name], expected)
        if tensor.ndim > 1:
            assert not torch.equal(tensor, other.state_dict()[name]), name
    drawn = [tensor.flatten()[:64] for tensor in model.state_dict().values() if tensor.ndim > 1]
    assert len({tuple((tensor / tensor.std()).tolist()[:3]) for tensor in drawn}) == len(drawn)


def test_the_first_state_is_pinned(tiny_config: Configs) -> None:
    # A change here changes every run of every seed: only with a note in the diary.
    weight = LanguageModel(tiny_config(), seed=0).state_dict()["blocks.1.mlp.down.weight"]
    torch.testing.assert_close(weight[0, :3], torch.tensor(PINNED), rtol=0, atol=1e-6)


PINNED = [0.0383063368, 0.0513370559, -0.0587459244]


def test_first_weights_have_the_stated_scale_and_first_loss_is_uniform(random_tokens: Tokens) -> None:
    model = LanguageModel(TransformerConfig(vocab_size=512, hidden_size=128, num_layers=4, num_heads=4))
    state = model.state_dict()
    assert abs(float(state["embedding.weight"].std()) / 0.02 - 1) < 0.02
    assert abs(float(state["blocks.0.attention.query.weight"].std()) / (0.4 / 128) ** 0.5 - 1) < 0.03
    assert abs(float(state["blocks.0.mlp.down.weight"].std()) / (0.4 / 352 / 8) ** 0.5 - 1) < 0.03
    tokens_BT = random_tokens(4, 64, vocab=512)
    loss = torch.nn.functional.cross_entropy(model(tokens_BT)[:, :-1].flatten(0, 1), tokens_BT[:, 1:].flatten())
    assert abs(float(loss.detach()) - 6.238) < 0.1  # ln 512


def test_no_public_call_touches_global_randomness(tiny_config: Configs, random_tokens: Tokens, family: str) -> None:
    before, default = torch.get_rng_state(), torch.get_default_dtype()
    model = LanguageModel(tiny_config(family, tie_embeddings=False))
    model(random_tokens(1, 4)).sum().backward()
    initialise(model, 3)
    model.new_cache(1)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.get_default_dtype() == default


def test_an_unknown_layer_is_not_given_a_silent_first_value() -> None:
    module = torch.nn.Module()
    module.register_parameter("scale", torch.nn.Parameter(torch.ones(3)))
    with pytest.raises(ConfigError, match="'scale'"):
        initialise(module, 0)
    with torch.device("meta"):
        hollow = LanguageModel(TransformerConfig(vocab_size=8, hidden_size=8, num_layers=1, num_heads=2))
    with pytest.raises(ConfigError, match="to_empty"):
        initialise(hollow, 0)


def test_the_forward_pass_compiles_without_a_graph_break(
    tiny_model: Models, random_tokens: Tokens, family: str
) -> None:
    model, tokens_BT = tiny_model(family), random_tokens(2, 12)
    compiled: Any = torch.compile(model, fullgraph=True, backend="eager")
    close(compiled(tokens_BT), model(tokens_BT))
    documents_BT = torch.tensor([[0] * 5 + [1] * 7, [0] * 12])
    close(
        compiled(tokens_BT, mask=document_mask(documents_BT), positions=document_positions(documents_BT)),
        model(tokens_BT, mask=document_mask(documents_BT), positions=document_positions(documents_BT)),
    )


@torch.no_grad()
def test_bf16_and_autocast_stay_near_fp32(tiny_model: Models, random_tokens: Tokens, family: str) -> None:
    model, tokens_BT = tiny_model(family), random_tokens(2, 24)
    exact = model(tokens_BT)
    scale = float(exact.std())
    with torch.autocast("cpu", torch.bfloat16):
        assert float((model(tokens_BT).float() - exact).std()) < 0.05 * scale
    model.to(torch.bfloat16)
    assert model(tokens_BT).dtype == torch.bfloat16
    assert float((model(tokens_BT).float() - exact).std()) < 0.05 * scale
    cache = model.new_cache(2)
    model(tokens_BT[:, :20], cache=cache)
    assert float((model(tokens_BT[:, 20:], cache=cache).float() - exact[:, 20:]).std()) < 0.05 * scale


def test_a_cast_does_not_round_the_rotary_frequencies(tiny_model: Models) -> None:
    model = tiny_model(head_dim=16)
    before = model.rotary.inverse_frequencies.clone()
    model.to(torch.bfloat16)
    assert torch.equal(model.rotary.inverse_frequencies, before)
    with torch.device("meta"):
        hollow = LanguageModel(model.config)
    hollow.to_empty(device="cpu")
    assert torch.equal(hollow.rotary.inverse_frequencies, before)


@pytest.mark.parametrize(
    ("tokens", "kwargs", "part"),
    [
        (torch.zeros(3, dtype=torch.int64), {}, "shape"),
        (torch.zeros(1, 3), {}, "int64"),
        (torch.zeros(1, 0, dtype=torch.int64), {}, "at least one"),
        (torch.zeros(1, 97, dtype=torch.int64), {}, "context of 96"),
        (torch.zeros(2, 3, dtype=torch.int64), {"positions": torch.arange(4)}, "positions"),
        (torch.zeros(2, 3, dtype=torch.int64), {"mask": torch.ones(2, 3, dtype=torch.bool)}, "mask"),
        (torch.zeros(2, 3, dtype=torch.int64), {"mask": torch.ones(3, 3, 3, dtype=torch.bool)}, "2 rows and 4 heads"),
        (torch.zeros(2, 3, dtype=torch.int64), {"mask": torch.ones(2, 2, 3, 3, dtype=torch.bool)}, "2 rows and 4"),
    ],
)
def test_wrong_input_is_named(tiny_model: Models, tokens: Tensor, kwargs: dict[str, Any], part: str) -> None:
    with pytest.raises(InputError, match=part):
        tiny_model()(tokens, **kwargs)


@torch.inference_mode()
def test_a_failed_pass_leaves_the_cache_as_it_was(tiny_model: Models, random_tokens: Tokens) -> None:
    model, tokens_BT = tiny_model(), random_tokens(1, 12)
    cache = model.new_cache(1, 10)
    model(tokens_BT[:, :8], cache=cache)
    with pytest.raises(InputError, match="8 of at most 10 tokens; 4 more"):
        model(tokens_BT[:, 8:], cache=cache)
    with pytest.raises(InputError, match="logits_to_keep 0"):
        model(tokens_BT[:, 8:10], cache=cache, logits_to_keep=0)
    assert cache.length == 8
    close(model(tokens_BT[:, 8:10], cache=cache), model(tokens_BT[:, :10])[:, 8:])


def test_a_cache_refuses_what_does_not_fit(tiny_model: Models, random_tokens: Tokens) -> None:
    model, tokens_BT = tiny_model(), random_tokens(2, 4)
    with pytest.raises(InputError, match="no gradients"):
        model(tokens_BT, cache=model.new_cache(2))
    with torch.no_grad():
        with pytest.raises(InputError, match="3 rows"):
            model(tokens_BT, cache=model.new_cache(3))
        with pytest.raises(InputError, match="bfloat16"):
            model(tokens_BT, cache=DenseCache(model.config, 2, 8, torch.bfloat16))
        cache = model.new_cache(2, 8)
        model(tokens_BT, cache=cache)
    assert (cache.length, cache.capacity, cache.batch_size) == (4, 8, 2)
    for call, part in (
        (lambda: cache.truncate(5), "holds 4"),
        (lambda: cache.truncate(-1), "holds 4"),
        (lambda: cache.select([0, 2]), "rows 0 to 1"),
        (lambda: cache.select([]), "at least one"),
        (lambda: cache.commit(1), "appended"),
        (lambda: model.new_cache(2, 0), "at least 1"),
    ):
        with pytest.raises(InputError, match=part):
            call()


def test_a_cache_built_in_inference_mode_serves_outside_it(tiny_model: Models, random_tokens: Tokens) -> None:
    model, tokens_BT = tiny_model(), random_tokens(1, 6)
    with torch.inference_mode():
        cache = model.new_cache(1, 8)
        model(tokens_BT[:, :3], cache=cache)
        cache.select([0, 0])
    with torch.no_grad():
        close(model(tokens_BT[:, 3:].expand(2, 3), cache=cache)[:1], model(tokens_BT)[:, 3:])
