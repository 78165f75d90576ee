"""A changed body: notice it, collect play data on it, and fine-tune the dynamics alone."""

from forethought.control.adaptation.adapt import AdaptationReport, AdaptConfig, adapt
from forethought.control.adaptation.monitor import Monitor, Sign, one_step_residuals
from forethought.control.adaptation.watching import Watched

__all__ = ["AdaptConfig", "AdaptationReport", "Monitor", "Sign", "Watched", "adapt", "one_step_residuals"]
