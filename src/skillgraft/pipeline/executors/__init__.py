"""Executors: the processes that a run's stages are trained in."""
