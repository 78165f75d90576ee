"""What a model is trained to do, against the formulas written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as functional

from forethought.data import Batch
from forethought.nn import LanguageModel, TransformerConfig
from forethought.pretrain import distillation_loss, next_token_loss

CPU = torch.device("cpu")
VOCAB = 17


@pytest.fixture
def models() -> tuple[LanguageModel, LanguageModel]:
    shape = TransformerConfig(vocab_size=VOCAB, hidden_size=16, num_layers=1, num_heads=2, max_positions=32)
    student, teacher = (LanguageModel(shape, seed=seed) for seed in (1, 2))
    with torch.no_grad():
        for model in (student, teacher):
            for parameter in model.parameters():
                parameter.mul_(4.0)
    return student, teacher.requires_grad_(False)


def a_batch(documents: bool = False) -> Batch:
    draws = np.random.Generator(np.random.Philox(3))
    tokens = draws.integers(0, VOCAB, (3, 9))
    targets = draws.integers(0, VOCAB, (3, 9))
    targets[2, 6:] = -100
    numbers = np.repeat([[1] * 4 + [2] * 5], 3, axis=0) if documents else None
    return Batch(tokens, targets, numbers)


def test_loss_is_the_mean_over_targets_that_count(models):
    student, _ = models
    batch = a_batch()
    loss, figures = next_token_loss(student, batch, device=CPU)
    laws = torch.log_softmax(student(torch.from_numpy(batch.tokens_BT)), -1)
    picked = [
        -laws[row, at, target].item()
        for row, targets in enumerate(batch.targets_BT)
        for at, target in enumerate(targets)
        if target >= 0
    ]
    assert loss.item() == pytest.approx(sum(picked) / len(picked), rel=1e-6)
    assert figures == {}


def test_documents_do_not_see_each_other(models):
    student, _ = models
    batch = a_batch(documents=True)
    loss, _ = next_token_loss(student, batch, device=CPU)
    changed = Batch(batch.tokens_BT.copy(), batch.targets_BT.copy(), batch.documents_BT)
    changed.tokens_BT[:, :4] = (changed.tokens_BT[:, :4] + 5) % VOCAB
    changed.targets_BT[:, :4] = batch.targets_BT[:, :4]
    masked = batch.targets_BT.copy()
    masked[:, :4] = -100
    first, _ = next_token_loss(student, Batch(batch.tokens_BT, masked, batch.documents_BT), device=CPU)
    second, _ = next_token_loss(student, Batch(changed.tokens_BT, masked, batch.documents_BT), device=CPU)
    assert first.item() == pytest.approx(second.item(), rel=1e-6)
    open_loss, _ = next_token_loss(student, Batch(changed.tokens_BT, masked), device=CPU)
    assert abs(open_loss.item() - second.item()) > 1e-4
    assert math.isfinite(loss.item())


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_soft_labels_are_the_divergence_of_the_softened_laws(models, temperature: float):
    student, teacher = models
    batch = a_batch()
    loss, figures = distillation_loss(student, batch, teacher=teacher, share=0.7, temperature=temperature, device=CPU)
    tokens = torch.from_numpy(batch.tokens_BT)
    p = torch.softmax(teacher(tokens) / temperature, -1)
    q = torch.softmax(student(tokens) / temperature, -1)
    counts = torch.from_numpy(batch.targets_BT) != -100
    divergence = (p * (p / q).log()).sum(-1)[counts].mean()
    plain = functional.cross_entropy(
        student(tokens).flatten(0, 1), torch.from_numpy(batch.targets_BT).flatten(), ignore_index=-100
    )
    assert figures["divergence"].item() == pytest.approx(divergence.item(), rel=1e-4)
    assert loss.item() == pytest.approx((0.3 * plain + 0.7 * temperature**2 * divergence).item(), rel=1e-5)


def test_a_student_that_is_its_teacher_has_nothing_to_learn(models):
    _, teacher = models
    twin = LanguageModel(teacher.config)
    twin.load_state_dict(teacher.state_dict())
    loss, _ = distillation_loss(twin, a_batch(), teacher=teacher, share=1.0, temperature=1.0, device=CPU)
    loss.backward()
    assert abs(loss.item()) < 1e-6
    assert max(p.grad.abs().max().item() for p in twin.parameters() if p.grad is not None) < 1e-6
    assert all(p.grad is None for p in teacher.parameters())
