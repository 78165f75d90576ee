"""How an agent is trained: one part each for proposal, dynamics and value, and the presets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pydantic import Field

from forethought.control.models import ModelConfig, NetworkConfig
from forethought.core.config import config
from forethought.core.errors import ConfigError, unknown_name
from forethought.diffusion import SamplerConfig
from forethought.train import LoopConfig, OptimiserConfig, ScheduleConfig

# Baselines by the same means: part.kind of `control.models.MODELS`.
PARTS = ("proposal.diffusion", "dynamics.diffusion", "value.regression")
BASELINES = ("dynamics.one-step", "policy.cloning", "joint.diffusion")


@config
class PartConfig:
    """One model and how it is trained."""

    model: ModelConfig = ModelConfig()
    batch_size: int = Field(default=256, ge=1)
    """Windows a step."""
    loop: LoopConfig = LoopConfig(steps=5000, ema_decay=0.998, checkpoint_every=1000, log_every=50)
    optimiser: OptimiserConfig = OptimiserConfig(lr=1e-3, weight_decay=1e-4, beta2=0.99)


@config
class AgentTraining:
    """The three artefacts of an agent (and the baselines' models), the split, and the value's return."""

    proposal: PartConfig
    dynamics: PartConfig
    value: PartConfig
    joint: PartConfig
    one_step: PartConfig
    policy: PartConfig
    parts: tuple[str, ...] = PARTS
    """What to train: proposal.diffusion, dynamics.diffusion, value.regression or value.state, and of the baselines
    dynamics.one-step, policy.cloning, joint.diffusion."""
    discount: float = Field(default=0.99, ge=0.0, le=1.0)
    """Of the return that the value learns."""
    termination_penalty: float = Field(default=0.0, ge=0.0)
    """Taken from the last reward of a terminated episode."""
    steady: bool = False
    """Take an episode that a time limit cut to go on for ever as it went, at its mean reward, so that its return is
    known; without it a return counts only where what was cut is negligible, which a long view loses all of."""
    validation: float = Field(default=0.1, gt=0.0, lt=1.0)
    """Share of the episodes that nothing is trained on."""
    seed: int = Field(default=0, ge=0)

    def __post_init__(self) -> None:
        known = (*PARTS, "value.state", *BASELINES)
        for part in self.parts:
            if part not in known:
                raise unknown_name("part", part, known)
        horizons = {self.of(part).model.horizon for part in self.parts if part.rpartition(".")[0] != "policy"}
        if len(horizons) > 1:
            raise ConfigError(f"the parts look {sorted(horizons)} steps ahead; give all of them one horizon")

    def of(self, part: str) -> PartConfig:
        """Return the settings of one part."""
        name, _, kind = part.partition(".")
        return self.one_step if kind == "one-step" else getattr(self, name)


def preset(name: str = "cpu") -> AgentTraining:
    """Return a preset: tiny (tests), cpu (minutes on one core), patched, or paper (arXiv 2410.05364; for a GPU).

    Raises:
        ConfigError: the preset is unknown.
    """
    if name not in PRESETS:
        raise unknown_name("preset of control", name, PRESETS)
    return PRESETS[name]()


def _training(base: PartConfig, *, value_steps: int) -> AgentTraining:
    """Return the settings of all parts from those of one: rho ancestral, p_d deterministic, as in the paper."""
    sampler = base.model.sampler
    noisy = replace(base, model=replace(base.model, sampler=replace(sampler, name="ddpm")))
    shorter = replace(base.loop, steps=value_steps)
    plain = replace(base, loop=shorter, model=replace(base.model, input_noise=0.05))
    return AgentTraining(
        proposal=noisy, dynamics=base, value=plain, joint=noisy, one_step=replace(base, loop=shorter), policy=plain
    )


def _mlp(network: str, steps: int, value_steps: int, horizon: int, batch: int) -> AgentTraining:
    model = ModelConfig(
        horizon=horizon, network=NetworkConfig(preset=network), sampler=SamplerConfig(steps=2, clip=8.0)
    )
    loop = LoopConfig(steps=steps, ema_decay=0.998 if steps > 1000 else 0.99, checkpoint_every=1000, log_every=50)
    return _training(PartConfig(model=model, loop=loop, batch_size=batch), value_steps=value_steps)


def _paper() -> AgentTraining:
    model = ModelConfig(
        history=1,
        horizon=32,
        network=NetworkConfig(preset="paper"),
        sampler=SamplerConfig(steps=10, clip=8.0),
    )
    schedule = ScheduleConfig(warmup=0.005)
    loop = LoopConfig(steps=100_000, ema_decay=0.99, clip_norm=5.0, schedule=schedule, log_every=100)
    optimiser = OptimiserConfig(lr=1e-4, weight_decay=1e-4, beta2=0.999)
    made = _training(PartConfig(model=model, batch_size=64, loop=loop, optimiser=optimiser), value_steps=100_000)
    many = replace(made.proposal.model, sampler=replace(made.proposal.model.sampler, steps=32))
    deep = replace(made.value.model, network=NetworkConfig(preset="paper", num_layers=10), input_noise=0.0)
    return replace(made, proposal=replace(made.proposal, model=many), value=replace(made.value, model=deep))


def _planned(made: AgentTraining) -> AgentTraining:
    """Return settings whose value judges states, far ahead: what planning on Hopper was measured to need."""
    value = replace(made.value.model, network=NetworkConfig(preset="tiny"), members=3)
    parts = tuple("value.state" if part == "value.regression" else part for part in made.parts)
    return replace(made, value=replace(made.value, model=value), parts=parts, discount=0.997, steady=True)


PRESETS: dict[str, Callable[[], AgentTraining]] = {
    # A return that a time limit cut is known where discount^(steps left) is negligible: short episodes need 0.95.
    "tiny": lambda: replace(_mlp("tiny", 300, 200, 8, 128), discount=0.95),
    "cpu": lambda: _planned(_mlp("cpu", 5000, 2500, 16, 256)),
    "patched": lambda: _planned(_mlp("patched", 5000, 2500, 16, 256)),
    "paper": _paper,
}
