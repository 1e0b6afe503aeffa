import pytest
import torch
from safetensors.torch import save_file

from skillgraft.checkpoint import read_layout
from skillgraft.errors import CompatibilityError
from skillgraft.skills.sketch import correlation_of_sketches, evenly_spaced, sketch_correlation, sketch_weights
from tests.tiny import split_into_shards, tiny_checkpoint, tiny_finetune, weights


def test_evenly_spaced():
    assert evenly_spaced(3, 64) == [0, 1, 2]
    assert evenly_spaced(0, 64) == []
    assert evenly_spaced(10, 4) == [0, 3, 6, 9]
    positions = evenly_spaced(10**9, 64)
    assert (len(positions), positions[0], positions[-1]) == (64, 0, 10**9 - 1)


def test_values_are_the_weights_to_six_digits(tiny):
    sketch = sketch_weights(read_layout(tiny))
    tensors = weights(tiny)
    assert sketch.keys() == {name for name, tensor in tensors.items() if tensor.ndim == 2}
    for name, values in sketch.items():
        flat = tensors[name].flatten().double()
        expected = flat[torch.tensor(evenly_spaced(flat.numel(), 64))]
        assert len(values) == 64
        assert torch.allclose(torch.tensor(values, dtype=torch.float64), expected, rtol=1e-5, atol=0)
        assert all(
            len(f"{value:e}".split("e")[0].rstrip("0").replace("-", "").replace(".", "")) <= 6 for value in values
        )


def test_sharding_does_not_change_it(tiny, tmp_path):
    sharded = split_into_shards(tiny, tmp_path / "sharded")
    assert sketch_weights(read_layout(sharded)) == sketch_weights(read_layout(tiny))


def test_fine_tunes_correlate_and_other_models_do_not(tiny, tmp_path):
    sketch = sketch_weights(read_layout(tiny))
    tuned = tiny_finetune(tiny, tmp_path / "tuned", size=5e-3)
    other = tiny_checkpoint(tmp_path / "other", seed=5)
    half = tiny_checkpoint(tmp_path / "half", seed=0, dtype=torch.bfloat16)
    assert sketch_correlation(read_layout(tiny), sketch) == pytest.approx(1.0, abs=1e-9)
    assert sketch_correlation(read_layout(half), sketch) > 0.999
    assert sketch_correlation(read_layout(tuned), sketch) > 0.9
    assert abs(sketch_correlation(read_layout(other), sketch)) < 0.2


def test_nothing_to_compare_is_none(tiny):
    layout = read_layout(tiny)
    assert sketch_correlation(layout, {}) is None
    assert sketch_correlation(layout, {"ghost": [1.0, 2.0], "model.norm.weight": [1.0] * 32}) is None


def test_two_sketches_with_each_other(tiny, tmp_path):
    one, other = (
        sketch_weights(read_layout(tiny_finetune(tiny, tmp_path / str(n), seed=n, size=5e-3))) for n in (1, 2)
    )
    foreign = sketch_weights(read_layout(tiny_checkpoint(tmp_path / "other", seed=5)))
    assert correlation_of_sketches(one, other) > 0.9
    assert abs(correlation_of_sketches(one, foreign)) < 0.2
    assert correlation_of_sketches({"a": [1.0, 2.0, 4.0]}, {"a": [2.0, 3.0, 5.0], "b": [1.0]}) == pytest.approx(1.0)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 1.0], [1.0, 2.0, 3.0], [1e-300, 2e-300], [1.0, float("inf")]])
def test_sketches_that_say_nothing(values):
    assert correlation_of_sketches({"a": [1.0, 2.0]}, {"a": values}) is None


def test_non_finite_weights_are_refused(copied):
    tensors = weights(copied)
    tensors["model.embed_tokens.weight"][0, 0] = float("nan")
    save_file(tensors, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CompatibilityError, match=r"tensor 'model\.embed_tokens\.weight' holds NaN or infinity"):
        sketch_weights(read_layout(copied))
