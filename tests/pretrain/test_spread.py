"""Members spread over groups and workers are the same members, and the faster size is taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from forethought.nn import TransformerConfig
from forethought.pretrain.members import seeds
from forethought.pretrain.members.speed import WORTH, Speeds, measure_speeds
from forethought.pretrain.members.spread import Spread, train_spread
from tests.pretrain.small import small_corpus, small_members


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_corpus(tmp_path_factory.mktemp("spread"))


def test_groups_and_workers_do_not_change_the_members(corpus: Path, tmp_path: Path):
    settings = small_members(corpus, members=seeds(2), train_tokens=1024)
    together = train_spread(settings, tmp_path / "together", Spread(group=2))
    apart = train_spread(settings, tmp_path / "apart", Spread(workers=2, group=1))
    assert len(together.runs) == 1
    assert len(apart.runs) == 2
    for a, b in zip(together.members, apart.members, strict=True):
        assert a["seed"] == b["seed"]
        assert a["report_loss"] == pytest.approx(b["report_loss"], abs=1e-4)


@pytest.mark.nightly
def test_members_train_on_ray(corpus: Path, tmp_path: Path):
    pytest.importorskip("ray")
    settings = small_members(corpus, members=seeds(2), train_tokens=1024)
    local = train_spread(settings, tmp_path / "local", Spread(group=2))
    ray = train_spread(settings, tmp_path / "ray", Spread(workers=2, group=1, backend="ray"))
    for a, b in zip(local.members, ray.members, strict=True):
        assert a["report_loss"] == pytest.approx(b["report_loss"], abs=1e-4)


def test_the_faster_size_is_taken_and_apart_unless_a_batch_is_worth_it(corpus: Path, monkeypatch: pytest.MonkeyPatch):
    import forethought.pretrain.members.speed as speed

    clock = {"now": 0.0, "cost": {}}

    class Timed(speed.Steps):
        def __init__(self, settings, shape, group):
            super().__init__(settings, shape, group)
            self.group = group

        def step(self):
            super().step()
            clock["now"] += clock["cost"][self.group]

    monkeypatch.setattr(speed, "Steps", Timed)
    monkeypatch.setattr(speed.time, "perf_counter", lambda: clock["now"])
    settings = small_members(corpus)
    shape = TransformerConfig(vocab_size=50, hidden_size=16, num_layers=1, num_heads=1)
    for pair, best in ((2.0, 1), (1.96, 1), (1.5, 2)):
        clock["cost"] = {1: 1.0, 2: pair}
        found: Speeds = measure_speeds(settings, shape, [2], rounds=2)
        assert found.best == best
        assert found.gain == pytest.approx(1.0 if best == 1 else 2.0 / pair)
        assert found.gain >= 1.0
    assert WORTH <= 1.03
