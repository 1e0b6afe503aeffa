import gc
import os
import weakref

import pytest

from skillgraft.support import resources

GIB = 2**30


def tree(root, files):
    for path, text in files.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


MEMINFO = {"proc/meminfo": f"MemTotal: {16 * 2**20} kB\nMemFree: 1 kB\nMemAvailable: {8 * 2**20} kB\n"}


def test_memory_without_limit(tmp_path):
    assert resources.memory(tree(tmp_path, MEMINFO)) == resources.Memory(16 * GIB, 8 * GIB)
    unlimited = {"proc/self/cgroup": "0::/user\n", "sys/fs/cgroup/user/memory.max": "max\n"}
    assert resources.memory(tree(tmp_path, unlimited)) == resources.Memory(16 * GIB, 8 * GIB)


def test_memory_of_a_container(tmp_path):
    group = {
        "proc/self/cgroup": "0::/a/b\n",
        "sys/fs/cgroup/a/memory.max": f"{4 * GIB}\n",
        "sys/fs/cgroup/a/memory.current": f"{3 * GIB}\n",
        "sys/fs/cgroup/a/memory.stat": f"anon 5\ninactive_file {GIB}\n",
        "sys/fs/cgroup/a/b/memory.max": f"{6 * GIB}\n",
        "sys/fs/cgroup/a/b/memory.current": f"{GIB}\n",
    }
    # The outer group is the tighter one: 4 - 3 + 1 reclaimable.
    assert resources.memory(tree(tmp_path, MEMINFO | group)) == resources.Memory(4 * GIB, 2 * GIB, limited=True)


def test_memory_of_a_container_of_version_1_that_sees_its_own_group_as_the_top(tmp_path):
    group = {
        "proc/self/cgroup": "3:cpu,cpuacct:/docker/7f\n2:memory:/docker/7f\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * GIB}\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB}\n",
    }
    assert resources.memory(tree(tmp_path, MEMINFO | group)) == resources.Memory(2 * GIB, GIB, limited=True)


def test_a_limit_above_the_machine_does_not_count(tmp_path):
    group = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": f"{2**62}\n"}
    assert resources.memory(tree(tmp_path, MEMINFO | group)) == resources.Memory(16 * GIB, 8 * GIB)


def test_memory_where_the_system_says_little(tmp_path):
    known = resources.memory(tmp_path)
    assert known.total == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert known.available is None


@pytest.mark.parametrize(("quota", "expected"), [("150000 100000", 2), ("max 100000", 4), ("1000 100000", 1)])
def test_cores(tmp_path, monkeypatch, quota, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    group = {"proc/self/cgroup": "0::/g\n", "sys/fs/cgroup/g/cpu.max": f"{quota}\n"}
    assert resources.cores(tree(tmp_path, group)) == expected


def test_cores_of_version_1(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    group = {
        "proc/self/cgroup": "3:cpu,cpuacct:/\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    }
    assert resources.cores(tree(tmp_path, group)) == 3
    assert resources.cores(tree(tmp_path, {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n"})) == 4


def test_cpu_features(tmp_path):
    assert resources.cpu_features(tmp_path) == frozenset()
    tree(tmp_path, {"proc/cpuinfo": "processor\t: 0\nflags\t\t: fpu avx512_bf16\n"})
    assert resources.cpu_features(tmp_path) == {"fpu", "avx512_bf16"}


def test_this_machine():
    assert resources.memory().total > 0
    assert resources.cores() >= 1


def test_memory_of_this_process(tmp_path):
    status = {"proc/self/status": "Name:\tpython\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n"}
    assert resources.resident(tree(tmp_path, status)) == (2**20, 2**21)
    assert resources.resident(tmp_path / "elsewhere") is None
    assert resources.resident(tree(tmp_path, {"proc/self/status": "VmRSS: \nVmHWM: 1 kB\n"})) is None


def test_what_a_finished_stage_held_is_given_back():
    class Model:
        pass

    gc.disable()  # nothing but the function itself collects
    try:
        model = Model()
        model.itself = model
        gone = weakref.ref(model)
        del model
        assert gone() is not None
        resources.release_memory()
        assert gone() is None
    finally:
        gc.enable()
