import pytest

from skillgraft.models import precision
from skillgraft.models.precision import bf16_pays, one_precision


@pytest.fixture
def probe(monkeypatch):
    monkeypatch.delenv("SKILLGRAFT_PRECISION")
    seconds = {"float32": 2.0, "bfloat16": 1.0}
    monkeypatch.setattr(precision, "_seconds", lambda dtype: seconds[str(dtype).removeprefix("torch.")])
    monkeypatch.setattr(precision, "device", lambda: precision.torch.device("cpu"))
    precision._probe.cache_clear()
    yield seconds
    precision._probe.cache_clear()


def test_a_stage_goes_on_in_the_precision_in_which_it_began(probe, tmp_path):
    with one_precision(tmp_path):
        assert bf16_pays()
    probe["bfloat16"] = 9.0
    precision._probe.cache_clear()  # another process, on a busy machine
    assert not bf16_pays()
    with one_precision(tmp_path):
        assert bf16_pays()
    assert not bf16_pays()


def test_a_wish_decides(probe, monkeypatch):
    monkeypatch.setenv("SKILLGRAFT_PRECISION", "fp32")
    assert not bf16_pays()
