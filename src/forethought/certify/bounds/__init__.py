"""Upper bounds on a risk; each is a function of plain numbers and errs on the safe side.

occam.py bounds one coded hypothesis, pacbayes.py a posterior over hypotheses, bounded.py real-valued losses by their
spread, tokens.py losses that depend on what came before, subsample.py risks known on a part of the data.
"""

from __future__ import annotations

from forethought.certify.bounds.bounded import betting, empirical_bernstein
from forethought.certify.bounds.budget import bit_budget
from forethought.certify.bounds.occam import hoeffding, kl_inverse, occam_binomial, occam_kl
from forethought.certify.bounds.pacbayes import (
    catoni,
    catoni_fixed,
    maurer_seeger,
    mcallester,
    mcallester_published,
    monte_carlo,
    monte_carlo_pac_bayes,
    pac_bayes_lambda,
    pac_bayes_quadratic,
    tolstikhin_seldin,
)
from forethought.certify.bounds.subsample import subsampled_hoeffding, subsampled_kl, subsampled_zero_one
from forethought.certify.bounds.tokens import (
    FREEDMAN_GRID,
    azuma,
    freedman,
    freedman_closed,
    freedman_from,
    freedman_printed,
    smoothing_range,
    smoothing_weight,
    token_price,
)

__all__ = [
    "FREEDMAN_GRID",
    "azuma",
    "betting",
    "bit_budget",
    "catoni",
    "catoni_fixed",
    "empirical_bernstein",
    "freedman",
    "freedman_closed",
    "freedman_from",
    "freedman_printed",
    "hoeffding",
    "kl_inverse",
    "maurer_seeger",
    "mcallester",
    "mcallester_published",
    "monte_carlo",
    "monte_carlo_pac_bayes",
    "occam_binomial",
    "occam_kl",
    "pac_bayes_lambda",
    "pac_bayes_quadratic",
    "smoothing_range",
    "smoothing_weight",
    "subsampled_hoeffding",
    "subsampled_kl",
    "subsampled_zero_one",
    "token_price",
    "tolstikhin_seldin",
]
