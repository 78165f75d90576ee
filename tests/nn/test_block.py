"""The one block, outside the language model: conditions, masks, positions, exact gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from forethought.core.errors import InputError
from forethought.core.rng import torch_generator
from forethought.nn import Block, BlockConfig, Rotary, causal_mask, document_mask, document_positions, initialise


def draw(*shape: int, name: str = "x", dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch_generator(5, f"test.{name}"), dtype=dtype)


def make_block(dtype: torch.dtype = torch.float32, **changes: Any) -> Block:
    block = Block(BlockConfig(**{"hidden_size": 16, "num_heads": 4, "num_kv_heads": 2, **changes}))
    initialise(block, 2)
    return block.to(dtype)


def stir(block: Block) -> Block:
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            parameter.add_(0.3 * draw(*parameter.shape, name=name))
    return block


@pytest.mark.parametrize("shape", [(3, 8), (3, 5, 8)], ids=["per row", "per token"])
def test_a_fresh_condition_leaves_the_block_the_identity_and_its_gates_learn(shape: tuple[int, ...]) -> None:
    block = make_block(condition_size=8)
    x_BTD = draw(3, 5, 16)
    y_BTD = block(x_BTD, condition=draw(*shape, name="c"))
    assert torch.equal(y_BTD, x_BTD)
    (y_BTD * draw(3, 5, 16, name="g")).sum().backward()
    assert block.modulation is not None
    weight = block.modulation.projection.weight.grad
    assert weight is not None
    per_role = weight.view(6, 16, 8).abs().sum(dim=(1, 2))
    assert per_role[2] > 0
    assert per_role[5] > 0
    assert per_role[[0, 1, 3, 4]].sum() == 0  # closed gates hide shift and scale in the first step only


def test_once_stirred_every_part_of_the_condition_and_block_gets_gradient() -> None:
    block = stir(make_block(condition_size=8))
    condition = draw(3, 8, name="c").requires_grad_()
    (block(draw(3, 5, 16), condition=condition) * draw(3, 5, 16, name="g")).sum().backward()
    assert condition.grad is not None
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert block.modulation is not None
    roles = block.modulation.projection.weight.grad.view(6, -1).abs().sum(dim=1)  # type: ignore[union-attr]
    assert bool((roles > 0).all())


def test_a_condition_of_one_row_or_token_touches_no_other() -> None:
    block = stir(make_block(condition_size=8))
    x_BTD, rows, tokens = draw(3, 5, 16), draw(3, 8, name="c"), draw(3, 5, 8, name="ct")
    other_rows, other_tokens = rows.clone(), tokens.clone()
    other_rows[1] += 1
    other_tokens[:, 4] += 1
    by_row = (block(x_BTD, condition=rows) - block(x_BTD, condition=other_rows)).abs().amax(dim=(1, 2))
    assert by_row[1] > 0.01
    assert by_row[[0, 2]].max() == 0
    kwargs: dict[str, Any] = {"causal": True}
    changed = block(x_BTD, condition=tokens, **kwargs) - block(x_BTD, condition=other_tokens, **kwargs)
    assert changed[:, 4].abs().max() > 0.01
    assert changed[:, :4].abs().max() == 0


@pytest.mark.parametrize("given", [True, False])
def test_a_condition_must_match_how_the_block_was_built(given: bool) -> None:
    block = make_block() if given else make_block(condition_size=8)
    with pytest.raises(InputError, match="condition"):
        block(draw(1, 2, 16), condition=draw(1, 8) if given else None)


def test_without_positions_and_mask_the_block_does_not_know_order() -> None:
    block = stir(make_block())
    x_BTD = draw(2, 6, 16)
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    torch.testing.assert_close(block(x_BTD[:, order]), block(x_BTD)[:, order], rtol=0, atol=1e-5)
    rotary = Rotary(4, 10000.0)(torch.arange(6), torch.float32)
    turned = block(x_BTD, rotary=rotary)
    assert (block(x_BTD[:, order], rotary=rotary) - turned[:, order]).abs().max() > 1e-3


def test_rotary_attention_depends_on_distance_alone() -> None:
    block = stir(make_block())
    x_BTD, rotary = draw(2, 6, 16), Rotary(4, 10000.0)
    near = block(x_BTD, rotary=rotary(torch.arange(6), torch.float32), causal=True)
    far = block(x_BTD, rotary=rotary(torch.arange(6) + 50, torch.float32), causal=True)
    torch.testing.assert_close(near, far, rtol=0, atol=1e-4)


def test_causal_flag_equals_causal_mask_in_all_its_shapes() -> None:
    block = stir(make_block())
    x_BTD = draw(2, 6, 16)
    flagged = block(x_BTD, causal=True)
    mask_TS = causal_mask(6, 6)
    for mask in (mask_TS, mask_TS.expand(2, 6, 6), mask_TS.expand(2, 4, 6, 6)):
        torch.testing.assert_close(block(x_BTD, mask=mask), flagged, rtol=0, atol=1e-5)
    everything = torch.ones(6, 6, dtype=torch.bool)
    torch.testing.assert_close(block(x_BTD, mask=everything, causal=True), flagged, rtol=0, atol=1e-5)


def test_a_mask_of_each_row_and_head_is_applied_to_that_row_and_head() -> None:
    block = stir(make_block())
    x_BTD = draw(2, 6, 16)
    mask = torch.ones(2, 6, 6, dtype=torch.bool)
    mask[1, :, :3] = False
    masked = block(x_BTD, mask=mask)
    torch.testing.assert_close(masked[0], block(x_BTD)[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(masked[1, 3:], block(x_BTD[:, 3:])[1], rtol=0, atol=1e-5)


def test_a_token_that_may_attend_to_nothing_stays_finite() -> None:
    block = stir(make_block())
    x_BTD = draw(1, 3, 16).requires_grad_()
    mask = torch.tensor([[False, False, False], [True, True, False], [True, True, True]])
    y_BTD = block(x_BTD, mask=mask)
    y_BTD.sum().backward()
    assert x_BTD.grad is not None
    assert bool(y_BTD.isfinite().all() and x_BTD.grad.isfinite().all())


@pytest.mark.parametrize("mask", [torch.ones(5, 6) > 0, torch.ones(6, 6), torch.ones(6) > 0])
def test_a_mask_of_wrong_shape_or_type_is_refused(mask: Tensor) -> None:
    with pytest.raises(InputError, match="queries, keys"):
        make_block()(draw(2, 6, 16), mask=mask)


def test_documents_have_their_own_mask_and_positions() -> None:
    documents_BT = torch.tensor([[4, 4, 4, 9, 9], [1, 2, 2, 2, 1]])
    assert document_positions(documents_BT).tolist() == [[0, 1, 2, 0, 1], [0, 0, 1, 2, 0]]
    assert document_mask(documents_BT)[0].int().tolist() == [[1, 1, 1, 0, 0]] * 3 + [[0, 0, 0, 1, 1]] * 2


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"qk_norm": True},
        {"qkv_bias": True, "attention_output_bias": True, "mlp_bias": True},
        {"condition_size": 3},
    ],
    ids=["plain", "qk norm", "biases", "condition"],
)
def test_gradients_equal_finite_differences(changes: dict[str, Any]) -> None:
    block = stir(make_block(torch.float64, hidden_size=8, num_heads=2, num_kv_heads=1, intermediate_size=6, **changes))
    rotary = Rotary(4, 10.0)(torch.arange(3), torch.float64)
    names = [name for name, _ in block.named_parameters()]
    x_BTD = draw(2, 3, 8, dtype=torch.float64).requires_grad_()
    condition = draw(2, 3, name="c", dtype=torch.float64).requires_grad_() if changes.get("condition_size") else None

    def run(x: Tensor, c: Tensor | None, *values: Tensor) -> Tensor:
        kwargs = {"rotary": rotary, "causal": True, "condition": c}
        return torch.func.functional_call(block, dict(zip(names, values, strict=True)), (x,), kwargs)

    values = [parameter.detach().requires_grad_() for parameter in block.parameters()]
    assert torch.autograd.gradcheck(run, (x_BTD, condition, *values), atol=1e-7, fast_mode=True)
