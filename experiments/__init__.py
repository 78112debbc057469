"""Runnable studies: `python -m experiments.NAME --config=... --workdir=DIR`."""
