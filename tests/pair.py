"""Two processes of one launcher, started here: both run the scenarios that are named, one after the other.

`start_pair(folder, "module", "function", …)` returns what each function of the module returned in the first and in the
second process. It is called with the folder of its name and the process's rank; the launcher's variables are set.
"""

import importlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
LONGEST_SECONDS = 400


def start_pair(folder, module, *scenarios):
    """Run the scenarios in two new processes; raise with their output where one fails."""
    folder.mkdir(parents=True, exist_ok=True)
    ports = ",".join(map(str, free_ports(len(scenarios))))
    environment = on_the_cpu(folder)
    logs = [folder / f"process-{rank}.log" for rank in (0, 1)]
    started = []
    for rank, log in enumerate(logs):
        with log.open("w") as out:
            command = [sys.executable, "-m", "tests.pair", str(rank), str(folder), ports, module, *scenarios]
            started.append(subprocess.Popen(command, env=environment, stdout=out, stderr=out, cwd=ROOT))
    try:
        codes = [process.wait(LONGEST_SECONDS) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert codes == [0, 0], "\n".join(log.read_text()[-3000:] for log in logs)
    return {name: [torch.load(folder / f"{name}-{rank}.pt") for rank in (0, 1)] for name in scenarios}


def on_the_cpu(folder):
    """Return the environment of a process that finds the code and the tests, and no accelerator."""
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    hidden = {"CUDA_VISIBLE_DEVICES": "", "HF_HOME": str(folder / "hub"), "SKILLGRAFT_CACHE": str(folder / "cache")}
    return os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **hidden}


def free_ports(count):
    """Return ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def main():
    """Be one of the two processes."""
    rank, folder, ports, module, *scenarios = sys.argv[1:]
    importlib.import_module("tests.preloaded")
    found = importlib.import_module(module)
    for name, port in zip(scenarios, ports.split(","), strict=True):
        which = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        os.environ.update({**which, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port})
        torch.save(getattr(found, name)(Path(folder) / name, int(rank)), Path(folder) / f"{name}-{rank}.pt")


if __name__ == "__main__":
    main()
