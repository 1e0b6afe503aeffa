"""What takes long to make and no test changes: made once, by the first worker that needs it."""

import fcntl
import os
import pickle
import shutil


def once(factory, name, build):
    """Return a folder and what `build(folder)` returned, of this worker or of another that was first."""
    shared = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder, made = shared / name, shared / f"{name}.pickle"
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a worker whose build failed
            folder.mkdir()
            found = build(folder)
            part = made.with_suffix(".part")
            part.write_bytes(pickle.dumps(found))
            part.rename(made)
        return folder, pickle.loads(made.read_bytes())
