"""What the server of `children` imports before it forks."""

import gc
import os

import skillgraft.stages
import skillgraft.train.check  # noqa: F401
import tests.conftest  # noqa: F401

os.sync = lambda: None  # of the whole machine's disks, for every stage and checkpoint
gc.freeze()
