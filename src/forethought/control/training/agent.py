"""Training a whole agent: one run directory that holds the parts' runs, and the agent as its model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike

from forethought.control.agent import Agent, AgentConfig
from forethought.control.agent_store import save_agent
from forethought.control.body import Body, body_of
from forethought.control.models import ActionProposal, ControlModel, ReturnValue
from forethought.control.objectives import Objective
from forethought.control.running.known import known
from forethought.control.training.config import AgentTraining
from forethought.control.training.error import proposal_diversity, rollout_error, value_calibration
from forethought.control.training.fit import MODEL, Data, fit_part
from forethought.core.errors import InputError
from forethought.core.run import Exists, Run
from forethought.data.episodes import Episodes, split_by_episode


def train_agent(
    episodes: Episodes,
    settings: AgentTraining,
    out: Path | str,
    *,
    low: ArrayLike | None = None,
    high: ArrayLike | None = None,
    agent: AgentConfig | None = None,
    recipe: str = "custom",
    recipe_config: AgentTraining | None = None,
    exists: Exists = "refuse",
) -> dict[str, Any]:
    """Train every part in a run of its own below one run directory and return what result.json holds.

    `low` and `high` are the bounds of the body's actions. The agent stands in the run's `model` folder, where
    `forethought.load` finds it; baselines stand in `parts/NAME/model`. Interrupted, it goes on part by part.

    Raises:
        InputError: the data, the settings or the directory cannot be used.
        InterruptedRunError: interrupted and saved.
        TrainingError: the loss is no longer finite.
    """
    out = Path(out)
    run = Run.open(out, config=settings, recipe=recipe, recipe_config=recipe_config, exists=exists)
    with run:
        finished = run.result()
        if finished is not None:
            return finished
        try:
            body, data = body_of(episodes, low=low, high=high), split(episodes, settings)
            _check_returns(data, settings)
        except InputError:
            run.discard()
            raise
        models = {
            part: fit_part(
                part, settings.of(part), data, body, out / "parts" / part, seed=settings.seed, exists="resume"
            )
            for part in settings.parts
        }
        result = _result(models, data, body, settings, recipe)
        _save(models, out, agent)
        run.write_result(result)
        return result


def split(episodes: Episodes, settings: AgentTraining) -> Data:
    """Return the episodes to train on and those held out, by whole episodes.

    Raises:
        ConfigError: there are too few episodes to hold one out.
    """
    shares = {"train": 1.0 - settings.validation, "validation": settings.validation}
    parts = split_by_episode(episodes, seed=settings.seed, fractions=shares)
    return Data(
        parts["train"], parts["validation"], settings.discount, settings.termination_penalty, steady=settings.steady
    )


def _check_returns(data: Data, settings: AgentTraining) -> None:
    """Refuse data without a single known return before the other parts are trained, not after."""
    if any(part.startswith("value.") for part in settings.parts):
        ReturnValue.known_returns(data.returns(data.train))


def _save(models: dict[str, ControlModel], out: Path, settings: AgentConfig | None) -> None:
    proposal = models.get("proposal.diffusion")
    dynamics = models.get("dynamics.diffusion") or models.get("dynamics.one-step")
    if proposal is None or dynamics is None:
        return
    value = models.get("value.regression") or models.get("value.state")
    facts = known(proposal.body.env_id)
    agent = Agent(
        proposal,
        dynamics,
        value if isinstance(value, ReturnValue) else None,
        # Without a value an agent is told what to do when it is opened; it is saved without that either way.
        objective=None if value is not None else Objective(lambda before, action, after: 0.0 * after[..., 0]),
        ended=None if facts is None else facts.ended,
        settings=settings,
    )
    save_agent(agent, out / MODEL, replace=True)


def _result(
    models: dict[str, ControlModel], data: Data, body: Body, settings: AgentTraining, recipe: str
) -> dict[str, Any]:
    result: dict[str, Any] = {
        "kind": "control.train",
        "recipe": recipe,
        "seed": settings.seed,
        "env_id": body.env_id,
        "constant": body.constant,
        "train_episodes": data.train.num_episodes,
        "train_steps": data.train.num_steps,
        "validation_episodes": data.validation.num_episodes,
        "behaviour_return": float(data.train.returns.mean()) if "rewards" in data.train.arrays else None,
        "parts": {name: _figures(model, data) for name, model in models.items()},
    }
    return result


def _figures(model: ControlModel, data: Data) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "fingerprint": model.fingerprint(),
    }
    if model.part == "dynamics":
        figures["rollout_error"] = rollout_error(model, data.validation).to_dict()
    elif isinstance(model, ReturnValue):
        figures["calibration"] = value_calibration(model, data.validation, returns=data.returns(data.validation))
    elif isinstance(model, ActionProposal):
        figures["diversity"] = proposal_diversity(model, data.validation)
    return figures
