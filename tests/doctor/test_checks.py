"""Each check is a function of facts; here the facts are made up."""

from pathlib import Path

import pytest

from skillgraft import doctor
from skillgraft.doctor import files, models, network, processor, software
from skillgraft.doctor.findings import Finding, worst
from skillgraft.doctor.software import Installed
from skillgraft.support.resources import Memory

GIB = 2**30
NUMBERS = ("numpy>=2", "torch>=2.8", 'pytest>=8; extra == "dev"', 'absent>=1; python_version < "3"')
VERSIONS = {"numpy": "2.4", "torch": "2.9.0+cpu", "pytest": None, "absent": None}
INSTALLED = Installed("0.1.0", ">=3.11", NUMBERS, ("dev",), VERSIONS)
TORCH = {
    "version": "2.13.0",
    "threads": 2,
    "kernels": "AVX512",
    "cuda_build": None,
    "device": "cpu",
    "accelerators": [],
    "bf16": True,
    "wish": None,
    "speedup": 2.5,
}
BROKEN = {"error": "ImportError: libtorch.so"}


def one(findings):
    """The only finding, as (severity, everything it says)."""
    [finding] = findings
    assert finding.found
    assert finding.meaning
    assert bool(finding.remedy) or finding.severity in {"ok", "note"}
    return finding.severity, f"{finding.found} | {finding.meaning} | {finding.remedy}"


def says(findings, severity, *texts):
    got, text = one(findings)
    assert got == severity, text
    for each in texts:
        assert each in text


def test_python():
    says(software.check_python((3, 12, 1), INSTALLED), "ok", "3.12.1")
    says(software.check_python((3, 10, 9), INSTALLED), "error", "3.10.9, supported: >=3.11", "virtual environment")


def test_packages():
    says(software.check_packages(INSTALLED), "ok", "numpy 2.4, torch 2.9.0+cpu", "Skillgraft 0.1.0")
    old = Installed("0.1.0", ">=3.11", NUMBERS, (), {**INSTALLED.versions, "torch": "2.7.1", "numpy": None})
    missing, outside, good = software.check_packages(old)
    assert (missing.severity, missing.found) == ("error", "numpy is missing, needed: numpy>=2")
    assert missing.remedy == 'python -m pip install "numpy>=2"'
    assert (outside.severity, outside.found) == ("warning", "torch 2.7.1, supported: torch>=2.8")
    assert good.found == "none"
    says(software.check_packages(Installed(None, None, (), (), {})), "warning", "not installed", "pip install -e .")


def test_the_ranges_are_those_of_the_metadata():
    import importlib.metadata

    facts = software.installed()
    assert set(facts.requirements) == set(importlib.metadata.requires("skillgraft"))
    assert facts.versions["numpy"] == importlib.metadata.version("numpy")
    assert software.installed("no-such-distribution").version is None


def test_optional_parts():
    says(
        software.check_extras(INSTALLED),
        "note",
        "[dev] not installed: pytest>=8",
        "tests and checks",
        "skillgraft[dev]",
    )
    whole = Installed("0.1.0", None, NUMBERS, ("dev",), {**INSTALLED.versions, "pytest": "9.0"})
    says(software.check_extras(whole), "ok", "[dev] installed")


def test_torch():
    says(processor.check_torch(TORCH), "ok", "2.13.0, 2 threads")
    says(processor.check_torch(BROKEN), "error", "libtorch.so", "merging and injecting on the CPU work", "pytorch.org")


def test_precision():
    says(processor.check_precision(TORCH), "ok", "bf16 autocast", "2.5 times as fast")
    says(processor.check_precision({**TORCH, "bf16": False, "speedup": 0.4}), "ok", "fp32", "0.4 times")
    says(processor.check_precision({**TORCH, "wish": "bf16", "speedup": None}), "note", "SKILLGRAFT_PRECISION=bf16")
    says(processor.check_precision({**TORCH, "device": "cuda", "speedup": None}), "ok", "what cuda supports")
    assert processor.check_precision(BROKEN) == []


def test_devices():
    says(processor.check_devices(TORCH, False, {"avx512_bf16", "fpu"}), "ok", "AVX512 kernels, bf16 units: avx512_bf16")
    says(processor.check_devices(BROKEN, True, ()), "ok", "no bf16 units known")
    _, unseen = processor.check_devices(TORCH, True, ())
    assert unseen.severity == "warning"
    assert "Torch is built without CUDA" in unseen.found
    cuda = {
        **TORCH,
        "device": "cuda",
        "cuda_build": "12.8",
        "accelerators": [{"name": "H200", "free": 100 * GIB, "total": 140 * GIB}],
    }
    _, gpu = processor.check_devices(cuda, True, ())
    assert gpu.found == "cuda:0: H200, 100.0 GiB of 140.0 GiB free"
    _, hidden = processor.check_devices({**TORCH, "cuda_build": "12.8"}, True, ())
    assert "Torch is built for CUDA 12.8" in hidden.found
    _, apple = processor.check_devices({**TORCH, "device": "mps", "accelerators": [{"name": "mps"}]}, False, ())
    assert apple.found == "mps:0: mps"


def test_threads():
    says(processor.check_threads(4, 4, {}), "ok", "4 cores")
    says(processor.check_threads(4, None, {"OMP_NUM_THREADS": "4"}), "ok")
    says(
        processor.check_threads(4, 4, {"MKL_NUM_THREADS": "16"}), "warning", "16 on 4 cores", "export MKL_NUM_THREADS=4"
    )
    says(processor.check_threads(4, 4, {"OMP_NUM_THREADS": "many"}), "warning", "is not a number of threads")
    says(processor.check_threads(4, 4, {"OMP_NUM_THREADS": "0"}), "warning", "is not a number of threads")
    says(processor.check_threads(1, 64, {}), "warning", "Torch starts 64 threads on 1 core", "export OMP_NUM_THREADS=1")
    says(processor.check_threads(4, 1, {"OMP_NUM_THREADS": "1"}), "note", "OMP_NUM_THREADS=1", "unset OMP_NUM_THREADS")


def test_numba(tmp_path):
    says(processor.check_numba({"version": "0.68", "cache": str(tmp_path / "new")}), "ok", "0.68", "new")
    says(
        processor.check_numba({"version": "0.68", "cache": None}), "warning", "compiles it each time", "NUMBA_CACHE_DIR"
    )
    says(processor.check_numba({"version": "0.68", "cache": "/proc/self"}), "warning", "/proc/self is read-only")
    says(processor.check_numba({"error": "ImportError: llvmlite"}), "error", "llvmlite")


def test_memory():
    says(
        files.check_memory(Memory(16 * GIB, 8 * GIB)),
        "ok",
        "8.0 GiB available of 16.0 GiB",
        "about 3.0 GiB, with LoRA 1.5",
    )
    says(files.check_memory(Memory(16 * GIB, None)), "ok", "16.0 GiB")
    says(files.check_memory(Memory(16 * GIB, 2 * GIB)), "warning", "close other programs")
    says(files.check_memory(Memory(2 * GIB, GIB, limited=True)), "warning", "limit of the container", "lora")
    says(files.check_memory(Memory(GIB, GIB)), "error", "more memory")


def test_disk():
    runs = files.Disk("runs", Path("/a"), 1, 10 * GIB, 3 * GIB)
    cache = files.Disk("cache", Path("/b"), 1, 10 * GIB, 4 * GIB)
    says(files.check_disk([runs, cache]), "ok", "10.0 GiB free for runs (/a), cache (/b)", "about 7.0 GiB")
    other = files.Disk("cache", Path("/b"), 2, GIB, 4 * GIB)
    assert [finding.severity for finding in files.check_disk([runs, other])] == ["ok", "warning"]


def test_disks_here(tmp_path):
    disks = files.inspect_disks(tmp_path / "not" / "there")
    assert [disk.purpose for disk in disks] == ["runs", "cache", "temporary files"]
    assert all(disk.free > 0 for disk in disks)
    assert not (tmp_path / "not").exists()


def test_files(tmp_path):
    place, lacking = files.inspect_files(tmp_path / "runs")
    assert place == tmp_path
    assert set(lacking.values()) == {""}
    assert list(tmp_path.iterdir()) == []
    says(files.check_files((place, lacking)), "ok", "writing, locking, renaming and linking work")
    says(files.check_files((place, {**lacking, "lock": "No locks available"})), "error", "cannot lock a file", "--runs")
    nothing = dict.fromkeys(files.ABILITIES, "was not tried") | {"write": "Permission denied"}
    severity, text = one(files.check_files((place, nothing)))
    assert (severity, text.count("cannot")) == ("error", 1)


def test_files_where_nothing_can_be_written():
    place, lacking = files.inspect_files(Path("/proc/self/nothing"))
    assert lacking["write"]
    assert files.check_files((place, lacking))[0].severity == "error"


def test_text():
    says(files.check_text({"files": "UTF-8", "terminal": "utf8"}), "ok")
    says(files.check_text({"files": "ISO-8859-1", "terminal": "utf-8"}), "error", "files: ISO-8859-1", "PYTHONUTF8=1")
    assert set(files.inspect_text()) == {"files", "file names", "terminal"}


def test_default_model(tmp_path):
    model = models.DefaultModel(tmp_path, 0, "", True)
    says(models.check_default_model(model), "note", "98 MB")
    says(models.check_default_model(models.DefaultModel(tmp_path, 0, "", False)), "warning", "ensurepip")
    says(models.check_default_model(models.DefaultModel(tmp_path, 5_000_000, "", True)), "ok", "5.0 MB")
    says(
        models.check_default_model(models.DefaultModel(tmp_path, 5, "is damaged", True)), "error", "is damaged", "rm -r"
    )
    assert models.inspect_default_model().size == 0  # the test's own cache is empty


def test_a_damaged_default_model(tmp_path, monkeypatch):
    monkeypatch.setenv("SKILLGRAFT_CACHE", str(tmp_path))
    (tmp_path / "models" / "SmolLM2-135M-Instruct").mkdir(parents=True)
    assert models.inspect_default_model().problem


def test_hub_cache(tmp_path):
    folder, found = models.inspect_hub_cache({"HF_HOME": str(tmp_path)})
    assert (folder, found) == (tmp_path / "hub", {})
    says(models.check_hub_cache((folder, found)), "ok", "no models in")
    blobs = tmp_path / "hub" / "models--owner--name" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "aa").write_bytes(b"x" * 2_000_000)
    assert models.inspect_hub_cache({"HF_HUB_CACHE": str(tmp_path / "hub")})[1] == {"owner/name": 2_000_000}
    says(models.check_hub_cache((folder, {f"o/{i}": 1 for i in range(7)})), "ok", "o/4 (0.0 MB) and 2 more")


def test_skills():
    says(models.check_skills(models.inspect_skills()), "ok", "squad-recall (5.0 MB)")
    broken, whole = models.check_skills([("a", 5, ""), ("b", 0, "b is damaged")])
    assert (broken.severity, whole.severity) == ("error", "ok")
    says(models.check_skills([]), "warning", "none came with")
    says(models.check_skills([("b", 0, "b is damaged")]), "error", "b is damaged")


def test_network():
    says(network.check_network({}), "ok", "hub lookups are allowed")
    says(
        network.check_network({"HF_ENDPOINT": "https://me:pw@mirror.example"}),
        "ok",
        "HF_ENDPOINT=https://mirror.example",
    )
    says(network.check_network({"HF_HUB_OFFLINE": "1"}), "note", "offline: HF_HUB_OFFLINE=1", "package registry")
    _, proxy = network.check_network({"HTTPS_PROXY": "http://me:secret@proxy.example:3128"})
    assert proxy.found == "HTTPS_PROXY=http://proxy.example:3128"


@pytest.mark.parametrize(
    ("url", "shown"),
    [("me:secret@proxy:80", "proxy:80"), ("http://[::", "(not a URL)"), ("http://a:pw@b:port", "(not a URL)")],
)
def test_a_password_is_never_shown(url, shown):
    assert network.without_password(url) == shown


def test_telemetry():
    says(network.check_telemetry({"HF_HUB_DISABLE_TELEMETRY": "1"}), "ok", "off")
    says(network.check_telemetry({"DO_NOT_TRACK": "true"}), "ok", "off")
    says(network.check_telemetry({"HF_HUB_DISABLE_TELEMETRY": "0"}), "note", "on", "export")


def test_a_check_that_fails_is_a_finding():
    def bad():
        raise ZeroDivisionError("division by zero\nsecond line")

    def lacking():
        raise ImportError("no module")

    good = Finding("a", "ok", "fine", "fine")
    found = doctor.run_checks({"bad": bad, "a": lambda: [good], "lacking": lacking})
    assert found[1] == good
    assert (found[0].check, found[0].severity) == ("bad", "warning")
    assert found[0].found == "the check itself failed: ZeroDivisionError: division by zero"
    assert found[2].remedy == "install Skillgraft again"


def test_worst():
    assert worst([]) == "ok"
    assert worst([Finding("a", each, "", "") for each in ("note", "error", "warning")]) == "error"
