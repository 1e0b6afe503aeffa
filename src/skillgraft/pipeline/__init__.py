"""The pipeline: plan, preflight checks, estimates, status and executors of a recipe's stages."""
