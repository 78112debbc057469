"""What the numbers of a matrix say: how many dimensions they fill, measured in one function each."""

from freezejax.analysis.spectra import components_for, first_share, participation_ratio, spectrum, stable_rank

__all__ = ["components_for", "first_share", "participation_ratio", "spectrum", "stable_rank"]
