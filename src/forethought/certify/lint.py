"""What a certificate silently assumes, each checked and given a name where it does not hold.

A bound speaks of a fixed function of one input, chosen among functions that were weighed before the data were seen, and
of examples drawn independently. Every check here is one way in which trained networks break that sentence.

Legend: N examples, K classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from forethought.core.errors import InputError
from forethought.core.rng import generator

Severity = Literal["error", "warning", "note"]

_PROBE_ROWS = 16
_TOLERANCE = 1e-4
_DROPOUTS = (nn.modules.dropout._DropoutNd,)
_BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)
_TYPES = (torch.float32, torch.float64)


class AssumptionError(InputError):
    """An assumption of the bound does not hold; the message names each finding and the remedy."""


@dataclass(frozen=True)
class Finding:
    """One assumption that fails or cannot be checked: an `error` forbids a certificate, the others go into it."""

    name: str
    severity: Severity
    message: str
    where: tuple[str, ...] = ()


def refuse(findings: Iterable[Finding]) -> None:
    """Raise where any finding is an error.

    Raises:
        AssumptionError: with all errors in one message.
    """
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        told = "; ".join(f"[{finding.name}] {finding.message}" for finding in errors)
        raise AssumptionError(f"no certificate can be given: {told}")


def lint_module(module: nn.Module, *, initial: Mapping[str, Tensor] | None = None) -> list[Finding]:
    """Return what in a module stands against a certificate: modes, buffers, shared, odd or broken tensors.

    `initial` holds the buffers as they were before the data were seen; without it every BatchNorm that uses running
    statistics is a finding, since nobody can tell whether they were learnt.
    """
    return [*_modes(module), *_buffers(module, initial), *_constants(module), *_parameters(module)]


def lint_behaviour(module: nn.Module, inputs: Tensor, *, seed: int = 0) -> list[Finding]:
    """Return whether outputs depend on chance or on the other rows of a batch, tried on a few rows of the inputs."""
    rows = inputs[: min(_PROBE_ROWS, len(inputs))]
    findings: list[Finding] = []
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        first, second = module(rows), module(rows)
        if not _same(first, second, exact=True):
            findings.append(
                Finding(
                    "non-deterministic",
                    "error",
                    "the same inputs gave different outputs twice in a row; a deterministic certificate needs one "
                    "function. Remove the randomness, or certify the stochastic predictor with "
                    "forethought.certify.pacbayes",
                )
            )
            return findings
        order = torch.from_numpy(generator(seed, "lint.order").permutation(len(rows)))
        alone = torch.cat([module(row[None]) for row in rows])
        if not (_same(module(rows[order]), first[order]) and _same(alone, first)):
            findings.append(
                Finding(
                    "batch-dependent-outputs",
                    "error",
                    "an input's output changes with the other rows of its batch, so the classifier is no "
                    "function of one "
                    "example; use evaluation mode, or GroupNorm or LayerNorm in place of batch statistics",
                )
            )
        if not bool(torch.isfinite(first).all()):
            findings.append(
                Finding("non-finite-outputs", "warning", "some outputs are not finite; they count as errors")
            )
    return findings


def lint_data(
    inputs: NDArray[np.generic] | Tensor,
    labels: NDArray[np.generic] | Tensor | Sequence[object],
    num_classes: int,
    *,
    groups: Sequence[object] | None = None,
    normaliser: Literal["none", "declared", "paid"] = "none",
) -> list[Finding]:
    """Return what in the examples stands against independent draws: odd labels, copies, groups, normalisation."""
    rows = inputs.detach().cpu().numpy() if isinstance(inputs, Tensor) else np.asarray(inputs)
    findings = _labels(labels, num_classes, len(rows))
    findings += _duplicates(rows)
    if groups is not None and len(set(groups)) < len(rows):
        findings.append(
            Finding(
                "grouped-examples",
                "error",
                f"{len(rows)} examples come from {len(set(groups))} groups, and examples of one group are not "
                "independent; give the groups with the data, (inputs, labels, groups), for a certificate in which n is "
                "the number of groups, or keep one example of each",
            )
        )
    if normaliser == "none" and _looks_standardised(rows):
        findings.append(
            Finding(
                "data-dependent-normaliser",
                "error",
                "the inputs have mean 0 and deviation 1 over this very sample, so they were divided by "
                "statistics of the "
                "data, which the decoder would have to know; normalise by constants fixed beforehand (normaliser="
                '"declared"), or pay for the statistics (normaliser="paid")',
            )
        )
    return findings


def lint_declaration(declared_digest: str | None, digest: str) -> list[Finding]:
    """Return whether the specification was written down before the data were read, and is still the same one."""
    if declared_digest is None:
        return [
            Finding(
                "prior-not-declared",
                "warning",
                "nothing shows that architecture, seed and grids were chosen before the data were seen; write the "
                "specification down first (`forethought certify plan --declare FILE`) and give it to the run",
            )
        ]
    if declared_digest != digest:
        return [
            Finding(
                "prior-changed",
                "error",
                f"the specification ({digest[:12]}) is not the declared one ({declared_digest[:12]}); certify with the "
                "declared one, or declare the new one before fresh data",
            )
        ]
    return []


def _modes(module: nn.Module) -> list[Finding]:
    findings: list[Finding] = []
    parts = [(name or "the module", part) for name, part in _all_modules(module)]
    norms = tuple(
        name
        for name, part in parts
        if isinstance(part, _BATCH_NORMS) and (part.training or not part.track_running_stats)
    )
    if norms:
        findings.append(
            Finding(
                "batch-norm-in-train-mode",
                "error",
                f"{', '.join(norms)} normalise by the batch, so an output depends on other examples; call "
                f"eval() (also on "
                "modules hidden in lists), or use GroupNorm",
                norms,
            )
        )
    dropouts = tuple(name for name, part in parts if isinstance(part, _DROPOUTS) and part.training and part.p > 0)
    if dropouts:
        findings.append(
            Finding("dropout-in-train-mode", "error", f"{', '.join(dropouts)} still drop units; call eval()", dropouts)
        )
    return findings


def _all_modules(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the modules, and also those hidden in plain lists, tuples and dictionaries, which eval() never reaches."""
    found: dict[int, tuple[str, nn.Module]] = {}
    queue = [("", module)]
    while queue:
        name, part = queue.pop(0)
        if id(part) in found:
            continue
        found[id(part)] = (name, part)
        prefix = f"{name}." if name else ""
        queue += [(prefix + child_name, child) for child_name, child in part.named_children()]
        for key, value in vars(part).items():
            if key.startswith("__") or key in ("_modules", "_parameters", "_buffers"):
                continue
            members = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
            queue += [(f"{prefix}{key}[{i}]", each) for i, each in enumerate(members) if isinstance(each, nn.Module)]
    return list(found.values())


def _buffers(module: nn.Module, initial: Mapping[str, Tensor] | None) -> list[Finding]:
    if initial is None:
        suspects = tuple(
            f"{name}.running_mean" if name else "running_mean"
            for name, part in _all_modules(module)
            if isinstance(part, _BATCH_NORMS) and part.running_mean is not None and not _fresh(part)
        )
    else:
        suspects = tuple(
            name
            for name, buffer in module.named_buffers()
            if name not in initial or not _same(buffer, initial[name].to(buffer), exact=True)
        )
    if not suspects:
        return []
    return [
        Finding(
            "uncoded-buffer",
            "error",
            f"{', '.join(suspects)} carry values learnt from data that the message does not code; train "
            f"with evaluation "
            "mode's fixed statistics, or replace the layer (GroupNorm, LayerNorm)",
            suspects,
        )
    ]


def _constants(module: nn.Module) -> list[Finding]:
    """Numbers of a module that are neither parameters nor in its state: no message codes them, no hash covers them."""
    persistent = set(module.state_dict())
    found = [name for name, each in module.named_buffers() if name not in persistent and each.is_floating_point()]
    for name, part in _all_modules(module):
        prefix = f"{name}." if name else ""
        found += [
            f"{prefix}{key}"
            for key, value in vars(part).items()
            if isinstance(value, np.ndarray) or (isinstance(value, Tensor) and not isinstance(value, nn.Parameter))
        ]
    if not found:
        return []
    return [
        Finding(
            "uncoded-constants",
            "warning",
            f"{', '.join(found)} are part of the module's code and of no message: they must have been fixed before the "
            "data, and whoever verifies needs the same; make them persistent buffers to have them coded",
            tuple(found),
        )
    ]


def _fresh(norm: nn.modules.batchnorm._BatchNorm) -> bool:
    mean, variance = norm.running_mean, norm.running_var
    return mean is not None and variance is not None and bool((mean == 0).all()) and bool((variance == 1).all())


def _parameters(module: nn.Module) -> list[Finding]:
    named = list(module.named_parameters(remove_duplicate=False))
    findings: list[Finding] = []
    if not named:
        findings.append(
            Finding("no-parameters", "error", "the module has no parameters; use certify_given for its count")
        )
    broken = tuple(name for name, each in named if not bool(torch.isfinite(each).all()))
    if broken:
        findings.append(Finding("non-finite-weights", "error", f"{', '.join(broken)} hold NaN or infinity", broken))
    odd = tuple(name for name, each in named if each.dtype not in _TYPES or each.is_sparse)
    if odd:
        findings.append(
            Finding(
                "unsupported-type", "error", f"{', '.join(odd)} are not dense float32 or float64; convert them", odd
            )
        )
    owners: dict[int, list[str]] = {}
    for name, each in named:
        owners.setdefault(id(each), []).append(name)
    tied = tuple(" = ".join(names) for names in owners.values() if len(names) > 1)
    if tied:
        findings.append(Finding("tied-parameters", "note", f"shared tensors are coded once: {', '.join(tied)}", tied))
    return findings


def _labels(labels: object, num_classes: int, num_rows: int) -> list[Finding]:
    array = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        shown = f"type {array.dtype} and shape {array.shape}"
        return [Finding("labels-not-integers", "error", f"labels have {shown}; give one integer class a row")]
    if len(array) != num_rows or not len(array):
        message = f"{len(array)} labels for {num_rows} rows; give as many of each, at least one"
        return [Finding("labels-missing", "error", message)]
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= num_classes:
        return [
            Finding("labels-out-of-range", "error", f"labels run from {low} to {high}; allowed 0 to {num_classes - 1}")
        ]
    empty = sorted(set(range(num_classes)) - set(np.unique(array).tolist()))
    if empty:
        named = ", ".join(map(str, empty))
        return [Finding("empty-class", "warning", f"no example of class {named}; the risk says little about it")]
    return []


def _duplicates(rows: NDArray[np.generic]) -> list[Finding]:
    seen: set[bytes] = set()
    for row in np.ascontiguousarray(rows).reshape(len(rows), -1):
        seen.add(hashlib.blake2b(row.tobytes(), digest_size=16).digest())
    copies = len(rows) - len(seen)
    if not copies:
        return []
    return [
        Finding(
            "duplicate-examples",
            "warning",
            f"{copies} of {len(rows)} inputs repeat another bit for bit; if they are copies (augmented, sent twice), "
            "certify (inputs, labels, groups_of_copies(inputs)), which counts originals once; leave them if the source "
            "truly repeats itself",
        )
    ]


def _looks_standardised(rows: NDArray[np.generic]) -> bool:
    if len(rows) < 20 or rows.dtype.kind != "f":
        return False
    table = rows.reshape(len(rows), -1).astype(np.float64)
    mean, deviation = table.mean(0), table.std(0)
    moving = deviation > 0
    by_feature = bool(moving.any()) and bool((abs(mean) < 1e-3).all() and (abs(deviation[moving] - 1) < 2e-3).all())
    return by_feature or (abs(table.mean()) < 1e-4 and abs(table.std() - 1) < 1e-4)


def _same(left: Tensor, right: Tensor, *, exact: bool = False) -> bool:
    if left.shape != right.shape:
        return False
    if exact:
        return bool(torch.equal(torch.nan_to_num(left), torch.nan_to_num(right)))
    return bool(torch.allclose(left, right, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True))
