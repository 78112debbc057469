"""Compiled programs of a run: traced once, compiled in the background, handed over at a phase boundary."""
