"""A frozen prefix run apart from the step, and the cache of what it makes of each window."""
