"""Certificates without a code: a posterior whose draws are drawn again, and a run of labels that is run again.

What a maker states and a verifier finds come from the same two functions, `derive_stochastic` and `derive_requential`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from forethought.certify.bounds.pacbayes import maurer_seeger, mcallester, monte_carlo, monte_carlo_pac_bayes
from forethought.certify.certificate.claims import (
    DivergenceClaim,
    DrawsClaim,
    PoolClaim,
    RequentialResult,
    StochasticResult,
    TeacherClaim,
    WeightClaim,
    word_of,
)
from forethought.certify.certificate.data import Examples
from forethought.certify.certificate.derive import trivial_error, weight_claim
from forethought.certify.decoder.architectures import GIVEN, build_module
from forethought.certify.decoder.base import Slot, slots_of
from forethought.certify.decoder.posterior import (
    as_weights,
    centre_of,
    divergence_bits,
    drawn_mistakes,
    read_posterior,
)
from forethought.certify.decoder.priors import GaussianPrior, NetworkRecipe, StudentPrior
from forethought.certify.decoder.recipe import MAX_PARAMETERS
from forethought.certify.decoder.student import Session, check_pool, one_thread, read_trajectory
from forethought.core.errors import ArtefactError, DataError


@dataclass(frozen=True)
class Drawn:
    """What follows from a prior, a posterior or a run, the data and a delta; `weights_by_name` are means or student."""

    module: nn.Module
    weights_by_name: dict[str, Tensor]
    bits: DivergenceClaim
    weights: WeightClaim
    result: Any


def derive_stochastic(
    prior: GaussianPrior,
    chosen: Mapping[str, int],
    message: bytes,
    data: Examples,
    delta: float,
    draws: DrawsClaim,
    *,
    module: nn.Module | None = None,
    audit_seed: int | None = None,
) -> Drawn:
    """Read a posterior, find its divergence from the prior, draw its networks again, count, and bound.

    The number that draws the networks follows from prior, data and posterior; an `audit_seed` draws others instead.

    Raises:
        InputError: the posterior, the choice, the data or the module are refused.
    """
    _check_units(data)
    network, slots = module_of(prior.network, module)
    deviation = _chosen(chosen, "deviations", prior.deviations)
    size = sum(slot.size for slot in slots)
    posterior = read_posterior(message, size)
    divergence = divergence_bits(posterior, centre_of(slots, prior.seed), deviation)
    bits = _ledger(divergence, prior.choice_bits)
    seed = word_of("certificate draws", prior.sha256, data.sha256, message) if audit_seed is None else audit_seed
    errors = drawn_mistakes(
        network,
        slots,
        posterior,
        (data.inputs, data.labels),
        num_draws=draws.count,
        seed=seed,
        precision=prior.precision,
    )
    n, share = data.size, draws.share
    risk, rest = errors / (n * draws.count), delta * (1.0 - share)
    above = monte_carlo(risk, draws.count, delta * share)
    bound = monte_carlo_pac_bayes(risk, draws.count, n, bits.total, delta, share=share)
    result = StochasticResult(
        errors=errors,
        n=n,
        train_risk=risk,
        risk_bound=above,
        bound=bound,
        trivial=trivial_error(data.labels),
        bounds={"maurer_kl": bound, "mcallester": mcallester(above, n, bits.total, rest)},
    )
    means = as_weights(slots, posterior.mean, torch.float64)
    return Drawn(network, means, bits, _both_claim(means, posterior.deviation), result)


def derive_requential(
    prior: StudentPrior,
    chosen: Mapping[str, int],
    message: bytes,
    data: Examples,
    delta: float,
    teacher: TeacherClaim,
    pool_claim: PoolClaim,
    *,
    pool: np.ndarray | None = None,
    module: nn.Module | None = None,
) -> Drawn:
    """Run teacher and student again from their seeds, hold every label and weight against the file, count, and bound.

    Raises:
        InputError: the run in the file is not the one that follows, or the data, the pool or the module are refused.
    """
    sample, rows = split_pool(data, pool, pool_claim.leading)
    if (pool_sha256(rows), len(rows)) != (prior.pool_sha256, pool_claim.size) or prior.pool_sha256 != pool_claim.sha256:
        raise ArtefactError("the pool of unlabelled inputs is not the one that the prior declares")
    steps = _chosen(chosen, "checkpoints", prior.inspected)
    network, slots = module_of(prior.network, module)
    labels, flat = read_trajectory(message, (steps, prior.batch), sum(slot.size for slot in slots))
    with one_thread():
        session = Session(network, prior, teacher, (sample.inputs, sample.labels), rows)
        for step in range(steps):
            session.advance()
            if not np.array_equal(session.drawn[-1], labels[step]):
                raise ArtefactError(f"the labels of step {step + 1} in the file are not those that the teacher draws")
        result, bits = requential_result(session, prior, teacher, sample, delta)
    weights = {name: value.detach() for name, value in session.student.weights.items()}
    found = np.concatenate([value.double().numpy().ravel() for value in weights.values()])
    if not np.allclose(found, flat, rtol=1e-12, atol=1e-12 * float(np.abs(found).max())):
        raise ArtefactError("the student in the file is not the one that learns from its labels")
    return Drawn(network, weights, bits, weight_claim(weights), result)


def requential_result(
    session: Session, prior: StudentPrior, teacher: TeacherClaim, sample: Examples, delta: float
) -> tuple[RequentialResult, DivergenceClaim]:
    """Return the bound on the student as it stands: kl(train || risk) <= (ratio + ln(2 sqrt(n) / delta)) / n."""
    # Of `attempts` seeds of the labels the best may be taken: a union over them, as over the checkpoints.
    bits = _ledger(session.bits(), prior.choice_bits + math.log2(teacher.attempts))
    errors, n = session.errors((sample.inputs, sample.labels)), sample.size
    bound = maurer_seeger(errors / n, n, bits.total, delta)
    result = RequentialResult(
        errors=errors,
        n=n,
        steps=session.step,
        train_risk=errors / n,
        expected_bits=session.expected / math.log(2.0),
        bound=bound,
        trivial=trivial_error(sample.labels),
        bounds={"maurer_kl": bound, "mcallester": mcallester(errors / n, n, bits.total, delta)},
    )
    return result, bits


def module_of(network: NetworkRecipe, module: nn.Module | None) -> tuple[nn.Module, list[Slot]]:
    """Return the module of a network, with memory for its weights and its tensors' slots; buffers are refused.

    Raises:
        ArtefactError: a module is missing or not called for, too large, or has buffers that nobody codes.
        ConfigError: the architecture or its settings are unknown.
    """
    if (network.architecture == GIVEN) != (module is not None):
        raise ArtefactError(f"architecture {network.architecture!r}: give a module with {GIVEN!r}, and only with it")
    built = build_module(network.architecture, network.settings) if module is None else module
    slots = slots_of(built)
    if not 1 <= sum(slot.size for slot in slots) <= MAX_PARAMETERS:
        raise ArtefactError(f"a network of more than {MAX_PARAMETERS} parameters, or none, is refused")
    persistent = set(built.state_dict())
    floating = [name for name, each in built.named_buffers() if name in persistent and each.is_floating_point()]
    if floating:
        raise ArtefactError(f"buffer {floating[0]!r} could carry values learnt from data, and no message codes it")
    return (built.to_empty(device="cpu") if module is None else built), slots


def split_pool(data: Examples, pool: np.ndarray | None, leading: int) -> tuple[Examples, np.ndarray]:
    """Return the sample and the pool's inputs: rows of their own, or the first `leading` of the data without labels.

    Raises:
        DataError: neither or both are given, or one of the two would be empty.
    """
    _check_units(data)
    if (pool is None) == (leading == 0):
        raise DataError("give a pool of unlabelled inputs, or the number of leading rows of the data that are one")
    if pool is not None:
        check_pool(pool, data.inputs)
        return data, pool
    if not 0 < leading < data.size:
        raise DataError(f"{leading} of {data.size} rows as a pool leave nothing; give 1 to {data.size - 1}")
    return Examples(data.inputs[leading:], data.labels[leading:]), data.inputs[:leading]


def pool_sha256(pool: np.ndarray) -> str:
    """Return the hash of a pool: type, shape and values, in order."""
    little = np.ascontiguousarray(pool, dtype=pool.dtype.newbyteorder("<"))
    state = hashlib.sha256(f"forethought pool 1\0{little.dtype.str}{little.shape}\0".encode())
    state.update(little.tobytes())
    return state.hexdigest()


def _check_units(data: Examples) -> None:
    if data.groups is not None:
        raise DataError("groups are certified by a coded network (method compress); leave them out here")


def _chosen(chosen: Mapping[str, int], name: str, grid: tuple[Any, ...]) -> Any:
    place = chosen.get(name)
    if set(chosen) != {name} or place is None or not 0 <= place < len(grid):
        raise ArtefactError(f"chosen {dict(chosen)} is no place in the prior's grid {name!r} of {len(grid)}")
    return grid[place]


def _ledger(divergence: float, choices: float) -> DivergenceClaim:
    total = math.nextafter(math.fsum((divergence, choices)), math.inf)
    return DivergenceClaim(divergence=divergence, choices=choices, total=total)


def _both_claim(means: Mapping[str, Tensor], deviation: np.ndarray) -> WeightClaim:
    """The fingerprint of a posterior is that of its means and deviations together."""
    return weight_claim({**means, "~deviation": torch.from_numpy(deviation)})
