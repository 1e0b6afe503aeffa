"""Processes of their own that start in milliseconds, since a server process has imported the trainers."""

import multiprocessing

import torch


def children():
    """Return the context to make processes of."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.preloaded"])
    return context


def run_alone(recipe, runs, cache, **settings):
    """Run a recipe, as a process of `children`."""
    import os

    from skillgraft import run

    os.environ["SKILLGRAFT_CACHE"] = cache
    torch.set_num_threads(1)
    run(recipe, runs=runs, **settings)
