"""The one training loop: step, state, phases, checkpoints, metrics, evaluation."""
