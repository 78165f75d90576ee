"""The models of this room: three artefacts of D-MPC, trained apart and swapped alone, and those of the baselines."""

from forethought.control.models.base import ControlModel, fingerprint, situation_of
from forethought.control.models.diffusing import ActionProposal, DiffusionDynamics, JointDiffuser, JointHalves
from forethought.control.models.settings import ModelConfig, NetworkConfig
from forethought.control.models.state_value import StateValue
from forethought.control.models.stepwise import ClonedPolicy, MBOPProposal, OneStepDynamics
from forethought.control.models.store import MODELS, facts_of, load_model, read_model, save_model, write_model
from forethought.control.models.value import ReturnValue

__all__ = [
    "MODELS",
    "ActionProposal",
    "ClonedPolicy",
    "ControlModel",
    "DiffusionDynamics",
    "JointDiffuser",
    "JointHalves",
    "MBOPProposal",
    "ModelConfig",
    "NetworkConfig",
    "OneStepDynamics",
    "ReturnValue",
    "StateValue",
    "facts_of",
    "fingerprint",
    "load_model",
    "read_model",
    "save_model",
    "situation_of",
    "write_model",
]
