"""SIGReg against its definition, its closed-form anchors, and itself over two processes."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from forethought.core.errors import InputError
from forethought.core.rng import generator, torch_generator
from forethought.world import sigreg
from forethought.world.sigreg import collapse_value, floor_value, random_directions


def draw(*shape: int, name: str = "z", dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch_generator(3, f"test.{name}"), dtype=dtype)


def by_definition(z_TND: Tensor, directions_DM: Tensor, num_knots: int) -> Tensor:
    """The statistic as written, with one tensor of samples x directions x knots."""
    t = torch.linspace(0, 3, num_knots, dtype=z_TND.dtype)
    c = torch.full((num_knots,), 6 / (num_knots - 1), dtype=z_TND.dtype)
    c[0] = c[-1] = 3 / (num_knots - 1)
    waves = (z_TND @ directions_DM)[..., None] * t
    phi = torch.exp(-t * t / 2)
    error = (waves.cos().mean(1) - phi) ** 2 + waves.sin().mean(1) ** 2
    return (z_TND.shape[1] * (error * c * phi).sum(-1)).mean()


@pytest.mark.parametrize("shape", [(3, 40, 24), (40, 24), (1, 1, 5), (2, 700, 8)])
@pytest.mark.parametrize("num_knots", [2, 9, 17])
def test_value_and_gradient_are_those_of_the_definition(shape: tuple[int, ...], num_knots: int) -> None:
    z = (1.7 * draw(*shape, dtype=torch.float64) + 0.3).requires_grad_()
    value = sigreg(z, 70, num_knots, torch_generator(0, "d"))
    (gradient,) = torch.autograd.grad(value, z)
    steps = z if z.ndim == 3 else z[None]
    expected = by_definition(steps, random_directions(shape[-1], 70, z, torch_generator(0, "d")), num_knots)
    (wanted,) = torch.autograd.grad(expected, z)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    assert torch.allclose(gradient, wanted, rtol=1e-9, atol=1e-12)


def test_fp32_is_close_to_fp64_even_for_wild_latents() -> None:
    for scale in (0.01, 1.0, 30.0):
        z = scale * draw(4, 128, 64)
        single = sigreg(z, 256, generator=torch_generator(0, "d"))
        directions = random_directions(64, 256, z, torch_generator(0, "d"))
        assert float(single) == pytest.approx(float(by_definition(z.double(), directions.double(), 17)), rel=2e-5)


@pytest.mark.parametrize(("num", "size"), [(16, 192), (128, 32), (1024, 192)])
def test_gaussian_latents_cost_the_floor_whatever_their_number_and_width(num: int, size: int) -> None:
    values = [float(sigreg(draw(num, size, name=f"{i}"), 512, generator=torch_generator(i, "d"))) for i in range(12)]
    assert sum(values) / len(values) == pytest.approx(1.0526, abs=0.05)
    assert floor_value() == pytest.approx(1.0526, abs=5e-4)


@pytest.mark.parametrize(("num", "expected"), [(64, 25.73), (128, 51.46), (1024, 411.7)])
def test_a_collapse_costs_040205_a_sample(num: int, expected: float) -> None:
    value = float(sigreg(torch.zeros(num, 192), generator=torch_generator(0, "d")))
    assert value == pytest.approx(expected, rel=2e-4)
    assert value == pytest.approx(0.40205 * num, rel=1e-4)
    assert collapse_value(num) == pytest.approx(value, rel=1e-5)


def test_the_anchors_of_bad_scales_shifts_and_ranks() -> None:
    def mean(make: object) -> float:
        seeds = range(40)
        return sum(float(sigreg(make(i), 64, generator=torch_generator(i, "d"))) for i in seeds) / 40  # type: ignore[operator]

    gaussian = [draw(128, 192, name=f"a{i}") for i in range(40)]
    assert mean(lambda i: 0.5 * gaussian[i]) == pytest.approx(19.8, rel=0.03)
    assert mean(lambda i: 2.0 * gaussian[i]) == pytest.approx(32.2, rel=0.03)
    # A shift of 1 in every coordinate is one of about N(0, 1) along a direction, so the expectation is the floor and
    # 2 N times the integral of exp(-1.5 t^2) (1 - exp(-t^2 / 2)): 50.7. (One draw of the same gave 53.9 elsewhere.)
    assert mean(lambda i: 1.0 + gaussian[i]) == pytest.approx(50.7, rel=0.06)

    def low_rank(i: int, rank: int) -> Tensor:
        basis, _ = torch.linalg.qr(draw(192, rank, name=f"b{i}"))
        return draw(128, rank, name=f"c{i}") @ basis.T * (192 / rank) ** 0.5

    assert mean(lambda i: low_rank(i, 2)) == pytest.approx(13.5, rel=0.1)
    assert mean(lambda i: low_rank(i, 16)) == pytest.approx(expected_of_rank(16, 192, 128), rel=0.06)
    uniform = mean(lambda i: torch.rand(128, 192, generator=torch_generator(i, "u")).sub(0.5).mul(12**0.5))
    assert uniform == pytest.approx(1.11, abs=0.1)


def expected_of_rank(rank: int, size: int, num: int) -> float:
    """The expectation for Gaussians in a subspace: a direction sees the variance size / rank * Beta."""
    variance = size / rank * generator(0, "beta").beta(rank / 2, (size - rank) / 2, 20_000)[:, None]
    t = np.linspace(0, 3, 17)
    c = np.full(17, 3 / 8)
    c[0] = c[-1] = 3 / 16
    wave, phi = np.exp(-variance * t**2 / 2), np.exp(-(t**2) / 2)
    per_knot = num * (wave - phi) ** 2 + 1 - wave**2
    return float((per_knot * c * phi).sum(axis=1).mean())


def test_each_step_is_tested_by_itself() -> None:
    z = draw(2, 64, 16)
    z[0] += 1.0
    z[1] -= 1.0
    apart = sigreg(z, 256, generator=torch_generator(0, "d"))
    together = sigreg(z.flatten(0, 1), 256, generator=torch_generator(0, "d"))
    alone = [sigreg(z[t], 256, generator=torch_generator(0, "d")) for t in range(2)]
    assert float(apart) == pytest.approx(float(alone[0] + alone[1]) / 2, rel=1e-5)
    assert abs(float(apart) - float(together)) > 1.0


def test_directions_are_fresh_and_the_global_generator_is_left_alone() -> None:
    z, before = draw(32, 8) * 3, torch.get_rng_state()
    assert float(sigreg(z, 4)) != float(sigreg(z, 4))
    assert torch.equal(torch.get_rng_state(), before)
    draws = torch_generator(0, "d")
    assert float(sigreg(z, 4, generator=draws)) != float(sigreg(z, 4, generator=draws))


def test_it_is_fp32_under_autocast() -> None:
    z = draw(2, 64, 32)
    plain = sigreg(z, 64, generator=torch_generator(0, "d"))
    with torch.autocast("cpu", torch.bfloat16):
        assert float(sigreg(z, 64, generator=torch_generator(0, "d"))) == float(plain)
    narrow = sigreg(z.bfloat16(), 64, generator=torch_generator(0, "d"))
    assert narrow.dtype == torch.float32


@pytest.mark.parametrize("bad", [torch.zeros(3), torch.zeros(0, 4), torch.zeros(2, 2, 2, 2), torch.zeros(3, 4).long()])
def test_bad_latents_are_refused(bad: Tensor) -> None:
    with pytest.raises(InputError, match="give float embeddings"):
        sigreg(bad)
    with pytest.raises(InputError, match="at least 1 and 2"):
        sigreg(torch.zeros(3, 4), 0)


PROGRAM = """
    import sys, torch, torch.distributed as dist
    from forethought.core.rng import torch_generator
    from forethought.world import sigreg
    from forethought.world.layers import BatchNorm
    from forethought.world.objective import vicreg

    rank, place = int(sys.argv[1]), sys.argv[2]
    z = torch.randn(3, 48, 24, generator=torch_generator(1, "z")) * 1.4 + 0.2
    mine = z[:, rank * 24 : (rank + 1) * 24].clone().requires_grad_() if rank >= 0 else z.clone().requires_grad_()
    if rank >= 0:
        dist.init_process_group("gloo", init_method=f"file://{place}/store", rank=rank, world_size=2)
    value = sigreg(mine, 200, generator=torch_generator(2, "d"))
    (gradient,) = torch.autograd.grad(value, mine)
    norm = BatchNorm(24)
    normal = norm(mine.flatten(0, 1))
    weight = torch.randn(48, 24, generator=torch_generator(1, "w"))
    own = weight[rank * 24 : (rank + 1) * 24] if rank >= 0 else weight
    (through,) = torch.autograd.grad((normal.unflatten(0, mine.shape[:2]) * own).sum(), mine)
    vic = vicreg(mine, 18.0, 12.0)
    (vic_gradient,) = torch.autograd.grad(vic, mine)
    from safetensors.torch import save_file
    save_file({"value": value.detach(), "gradient": gradient, "normal": normal.detach().contiguous(),
        "through": through, "running": norm.running_var, "vic": vic.detach(), "vic_gradient": vic_gradient},
        f"{place}/{rank}.safetensors")
    if rank >= 0:
        dist.destroy_process_group()
        import time; time.sleep(0.1)
"""


def test_two_processes_give_the_value_and_gradient_of_one(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    script = tmp_path / "rank.py"
    script.write_text(textwrap.dedent(PROGRAM))
    started = [subprocess.Popen([sys.executable, str(script), str(rank), str(tmp_path)]) for rank in (0, 1, -1)]
    assert [process.wait(120) for process in started] == [0, 0, 0]
    first, second, whole = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1, -1))
    for name in ("value", "vic"):
        assert float(first[name]) == float(second[name])
        assert float(first[name]) == pytest.approx(float(whole[name]), rel=1e-6)
    # As DDP averages them: each rank's gradient is that of the sum of the ranks' equal losses.
    for name, scale in (("gradient", 2.0), ("vic_gradient", 2.0), ("through", 1.0)):
        joined = torch.cat([first[name], second[name]], dim=1) / scale
        assert (joined - whole[name]).abs().max() <= 1e-6 * max(1.0, float(whole[name].abs().max())), name
    assert torch.allclose(first["running"], whole["running"], rtol=1e-5)
