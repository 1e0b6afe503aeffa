"""Processes of their own that start in milliseconds, since a server process has imported the trainers."""

import multiprocessing
import os

import torch

from skillgraft import run


def children():
    """Return the context to make processes of."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.preloaded"])
    return context


def run_alone(recipe, runs, cache):
    """Run a recipe as a process of `children`, with a trainer's checkpoint after each step."""
    os.environ["SKILLGRAFT_CACHE"] = cache
    torch.set_num_threads(1)
    run(recipe, runs=runs, checkpoint_seconds=0)
