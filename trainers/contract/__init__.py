"""Torch-free ground that the orchestrator and the workers share: run specification, run folder, plans, states, errors."""
