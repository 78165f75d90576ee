"""Every broken assumption has a name, and a sound module and sound data have none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from forethought.certify.lint import (
    AssumptionError,
    lint_behaviour,
    lint_data,
    lint_declaration,
    lint_module,
    refuse,
)


class Hidden(nn.Module):
    """The wrapper that defeats eval(): its network sits in a plain list."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.own = nn.Linear(4, 4)
        self._forward_net = [inner]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._forward_net[0](self.own(x))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 3, bias=False)
        self.b = nn.Linear(3, 3, bias=False)
        self.b.weight = self.a.weight


class Noisy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand_like(x)


def names(findings) -> set[str]:
    return {finding.name for finding in findings}


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def test_a_sound_module_has_no_finding():
    module = mlp()
    assert lint_module(module, initial={}) == []
    assert lint_behaviour(module, torch.linspace(0, 1, 40).reshape(10, 4)) == []


def test_batch_norm_in_train_mode_is_found_and_so_is_its_effect():
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).train()
    assert "batch-norm-in-train-mode" in names(lint_module(module))
    module[1].train()
    plain = nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False)).eval()
    assert "batch-norm-in-train-mode" in names(lint_module(plain))


def test_a_network_hidden_in_a_list_is_found():
    module = Hidden(nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5))).eval()
    assert {"batch-norm-in-train-mode", "dropout-in-train-mode"} <= names(lint_module(module))


def test_dropout_counts_in_train_mode_only():
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    assert "dropout-in-train-mode" in names(lint_module(module.train()))
    assert names(lint_module(module.eval())) == set()


def test_learnt_running_statistics_are_uncoded_buffers():
    module = nn.Sequential(nn.BatchNorm1d(4)).eval()
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    assert "uncoded-buffer" not in names(lint_module(module))
    assert "uncoded-buffer" not in names(lint_module(module, initial=before))
    module[0].running_mean.add_(0.1)
    assert "uncoded-buffer" in names(lint_module(module))
    assert "uncoded-buffer" in names(lint_module(module, initial=before))


def test_outputs_that_depend_on_the_batch_are_found():
    class Centred(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x - x.mean(0)

    assert names(lint_behaviour(Centred(), torch.eye(4))) == {"batch-dependent-outputs"}


def test_chance_in_the_outputs_is_found_and_leaves_the_global_generator_alone():
    state = torch.random.get_rng_state()
    assert names(lint_behaviour(Noisy(), torch.eye(4))) == {"non-deterministic"}
    assert torch.equal(state, torch.random.get_rng_state())


def test_tied_broken_odd_and_missing_parameters():
    assert names(lint_module(Tied())) == {"tied-parameters"}
    module = mlp()
    with torch.no_grad():
        module[0].weight[0, 0] = float("nan")
    assert names(lint_module(module)) == {"non-finite-weights"}
    assert names(lint_module(mlp().half())) == {"unsupported-type"}
    assert names(lint_module(nn.ReLU())) == {"no-parameters"}


@pytest.mark.parametrize(
    ("labels", "name"),
    [
        (np.array([0.0, 1.0, 2.0, 1.0]), "labels-not-integers"),
        (np.eye(4, dtype=np.int64), "labels-not-integers"),
        (["a", "b", "c", "d"], "labels-not-integers"),
        (np.array([0, 1, 2]), "labels-missing"),
        (np.array([0, 1, 2, 3]), "labels-out-of-range"),
        (np.array([0, 1, -1, 2]), "labels-out-of-range"),
        (np.array([0, 1, 1, 0]), "empty-class"),
    ],
)
def test_odd_labels_are_named(labels: object, name: str):
    assert names(lint_data(np.eye(4), labels, 3)) == {name}


def test_copies_groups_and_normalisers():
    rows = np.arange(80, dtype=np.float64).reshape(40, 2)
    labels = np.arange(40) % 3
    assert lint_data(rows, labels, 3) == []
    assert names(lint_data(np.vstack([rows[:39], rows[:1]]), labels, 3)) == {"duplicate-examples"}
    assert names(lint_data(rows, labels, 3, groups=[i // 2 for i in range(40)])) == {"grouped-examples"}
    assert lint_data(rows, labels, 3, groups=list(range(40))) == []
    standard = (rows - rows.mean(0)) / rows.std(0)
    assert names(lint_data(standard, labels, 3)) == {"data-dependent-normaliser"}
    assert names(lint_data((rows - rows.mean()) / rows.std(), labels, 3)) == {"data-dependent-normaliser"}
    assert lint_data(standard, labels, 3, normaliser="paid") == []


def test_the_prior_is_declared_or_said_not_to_be():
    assert names(lint_declaration(None, "abc")) == {"prior-not-declared"}
    assert names(lint_declaration("abd", "abc")) == {"prior-changed"}
    assert lint_declaration("abc", "abc") == []


def test_errors_forbid_and_warnings_do_not():
    refuse(lint_declaration(None, "abc"))
    with pytest.raises(AssumptionError, match="prior-changed"):
        refuse(lint_declaration("abd", "abc"))


def test_numbers_that_no_message_codes_are_named():
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(4, 3)
            self.centre = torch.ones(4)
            self.table = [nn.Module()]
            self.table[0].spread = np.ones(2)
            self.register_buffer("scale", torch.ones(4), persistent=False)
            self.register_buffer("coded", torch.ones(4))

    (found,) = lint_module(Centred().eval())
    assert (found.name, found.severity) == ("uncoded-constants", "warning")
    assert set(found.where) == {"centre", "scale", "table[0].spread"}


def test_the_remedies_for_groups_and_copies_are_named():
    rows, labels = np.repeat(np.eye(4), 2, axis=0), np.arange(8) % 3
    (copies,) = lint_data(rows, labels, 3)
    assert "groups_of_copies" in copies.message
    (groups,) = lint_data(np.arange(16.0).reshape(8, 2), labels, 3, groups=[1] * 8)
    assert "(inputs, labels, groups)" in groups.message
