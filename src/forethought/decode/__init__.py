"""Exact decoding of language models: plain, speculative, and speculative speculative (SSD), all with one law."""

from forethought.decode.detokenize import Decode, Detokenizer, StopScanner
from forethought.decode.emission import Chunk, Emission
from forethought.decode.law.chance import Chance
from forethought.decode.law.sampling import SamplingParams, distribution, point_mass
from forethought.decode.law.verify import Verdict, accept_probabilities, draw, residual, verify
from forethought.decode.llm import LLM
from forethought.decode.options import EngineConfig, SpeculativeConfig
from forethought.decode.outputs import CompletionOutput, Logprob, RequestOutput, StreamChunk, Update
from forethought.decode.served import ServedModel, open_model
from forethought.decode.single.acceptance import Acceptance, acceptance
from forethought.decode.single.cached import CachedModel
from forethought.decode.single.generate import METHODS, Generation, GenerationStream, generate
from forethought.decode.single.speculate import PROPOSERS, DecodeState, Proposal, Proposer
from forethought.decode.single.ssd import OutcomeSpeculator, SSDOptions, saguaro
from forethought.decode.statistics import Statistics

__all__ = [
    "LLM",
    "METHODS",
    "PROPOSERS",
    "Acceptance",
    "CachedModel",
    "Chance",
    "Chunk",
    "CompletionOutput",
    "Decode",
    "DecodeState",
    "Detokenizer",
    "Emission",
    "EngineConfig",
    "Generation",
    "GenerationStream",
    "Logprob",
    "OutcomeSpeculator",
    "Proposal",
    "Proposer",
    "RequestOutput",
    "SSDOptions",
    "SamplingParams",
    "ServedModel",
    "SpeculativeConfig",
    "Statistics",
    "StopScanner",
    "StreamChunk",
    "Update",
    "Verdict",
    "accept_probabilities",
    "acceptance",
    "distribution",
    "draw",
    "generate",
    "open_model",
    "point_mass",
    "residual",
    "saguaro",
    "verify",
]
