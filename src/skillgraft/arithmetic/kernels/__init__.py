"""Compiled CPU kernels of merging, rounding and reading tensor sources."""
