"""D-MPC: control by diffusion models of actions and dynamics that takes a new reward or a changed body at run time.

Reading order: situation.py, body.py, models/, objectives/, planning/, agent.py, training/, running/, adaptation/,
ahead.py.
"""

from __future__ import annotations

from forethought.control.adaptation import AdaptationReport, AdaptConfig, Monitor, adapt
from forethought.control.agent import Agent, AgentConfig, Decision
from forethought.control.agent_store import load_agent
from forethought.control.ahead import AheadAgent, Tube
from forethought.control.body import Body, body_of
from forethought.control.distilling import distil, export_onnx
from forethought.control.models import ControlModel, ModelConfig, fingerprint, load_model, save_model
from forethought.control.objectives import Constraint, Foreseen, Objective, ObjectiveError
from forethought.control.planning import SSRConfig, SSRPlanner
from forethought.control.running import collect, evaluate
from forethought.control.training import AgentTraining, Data, PartConfig, fit_part, preset, rollout_error
from forethought.control.training.agent import train_agent

__all__ = [
    "AdaptConfig",
    "AdaptationReport",
    "Agent",
    "AgentConfig",
    "AgentTraining",
    "AheadAgent",
    "Body",
    "Constraint",
    "ControlModel",
    "Data",
    "Decision",
    "Foreseen",
    "ModelConfig",
    "Monitor",
    "Objective",
    "ObjectiveError",
    "PartConfig",
    "SSRConfig",
    "SSRPlanner",
    "Tube",
    "adapt",
    "body_of",
    "collect",
    "distil",
    "evaluate",
    "export_onnx",
    "fingerprint",
    "fit_part",
    "load_agent",
    "load_model",
    "preset",
    "rollout_error",
    "save_model",
    "train_agent",
]
