"""What takes long to make and no test changes: made once, by the first worker that needs it."""

import fcntl
import os
import pickle
import shutil
from contextlib import contextmanager


def shared(factory):
    """Return a folder that all workers see."""
    folder = factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@contextmanager
def alone(file):
    """Let one worker in at a time."""
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def once(factory, name, build):
    """Return a folder and what `build(folder)` returned, of this worker or of another that was first."""
    place = shared(factory)
    folder, made = place / name, place / f"{name}.pickle"
    with alone(place / f"{name}.lock"):
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a worker whose build failed
            folder.mkdir()
            found = build(folder)
            part = made.with_suffix(".part")
            part.write_bytes(pickle.dumps(found))
            part.rename(made)
        return folder, pickle.loads(made.read_bytes())
