"""What the server of `children` imports before it forks."""

import gc
import os

import tests.conftest  # noqa: F401

os.sync = lambda: None  # of the whole machine's disks, for every stage and checkpoint
gc.freeze()
