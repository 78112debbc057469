"""What the numbers of a matrix say, and what a loss says of a matrix: one function per measure."""

from freezejax.analysis.alignment import alignment, chance_alignment, cross_validated_r2, principal_axes
from freezejax.analysis.amplitudes import Amplitudes, bumps, fit_amplitudes, kurtosis, max_correlation
from freezejax.analysis.diagnostics import Sensitivity, moved, plasticity, sensitivities, similarities
from freezejax.analysis.spectra import components_for, first_share, participation_ratio, spectrum, stable_rank

__all__ = [
    "Amplitudes",
    "Sensitivity",
    "alignment",
    "bumps",
    "chance_alignment",
    "components_for",
    "cross_validated_r2",
    "first_share",
    "fit_amplitudes",
    "kurtosis",
    "max_correlation",
    "moved",
    "participation_ratio",
    "plasticity",
    "principal_axes",
    "sensitivities",
    "similarities",
    "spectrum",
    "stable_rank",
]
