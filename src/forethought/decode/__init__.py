"""Exact decoding of language models: plain, speculative, and speculative speculative (SSD), all with one law."""

from forethought.decode.acceptance import Acceptance, acceptance
from forethought.decode.cached import CachedModel
from forethought.decode.chance import Chance
from forethought.decode.detokenize import Decode, Detokenizer, StopScanner
from forethought.decode.emission import Chunk, Emission
from forethought.decode.generate import METHODS, Generation, GenerationStream, generate
from forethought.decode.sampling import SamplingParams, distribution, point_mass
from forethought.decode.speculate import PROPOSERS, DecodeState, Proposal, Proposer
from forethought.decode.ssd import OutcomeSpeculator, SSDOptions, saguaro
from forethought.decode.statistics import Statistics
from forethought.decode.verify import Verdict, accept_probabilities, draw, residual, verify

__all__ = [
    "METHODS",
    "PROPOSERS",
    "Acceptance",
    "CachedModel",
    "Chance",
    "Chunk",
    "Decode",
    "DecodeState",
    "Detokenizer",
    "Emission",
    "Generation",
    "GenerationStream",
    "OutcomeSpeculator",
    "Proposal",
    "Proposer",
    "SSDOptions",
    "SamplingParams",
    "Statistics",
    "StopScanner",
    "Verdict",
    "accept_probabilities",
    "acceptance",
    "distribution",
    "draw",
    "generate",
    "point_mass",
    "residual",
    "saguaro",
    "verify",
]
