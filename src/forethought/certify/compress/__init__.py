"""Training a network to be short: few numbers in a fixed subspace, few levels, and a rate that the bound itself sets.

quantiser.py makes numbers into symbols and lets gradients through; network.py is the network as a function of these
numbers; slope.py says what a bit is worth; phases.py trains in resumable phases; coding.py makes segments.
"""

from __future__ import annotations

from forethought.certify.compress.network import CompressibleNetwork
from forethought.certify.compress.phases import CompressionConfig, Examples, Phase, run_phase
from forethought.certify.compress.quantiser import Quantiser
from forethought.certify.compress.slope import Slope, bound_slope

__all__ = [
    "CompressibleNetwork",
    "CompressionConfig",
    "Examples",
    "Phase",
    "Quantiser",
    "Slope",
    "bound_slope",
    "run_phase",
]
