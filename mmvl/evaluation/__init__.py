"""Evaluation: tasks and metrics behind `mmvl eval`."""
