"""No method mixes devices: on tensors that only say that they are on a GPU, Torch's own rules of devices hold."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from skillgraft.arithmetic.methods import METHODS
from skillgraft.arithmetic.methods.method import TileContext

STATISTICS = {
    "slerp": np.array([[1.0, 0.2], [0.2, 1.0]]),
    "ties": [0.1, 0.1],
    "model_stock": np.eye(2),
    "breadcrumbs": [(0.1, 0.5)] * 2,
}
INDEXED = {"cabs", "pcb", "mediator"}
"""Slicing such a tensor needs a Torch that was built for GPUs."""


@pytest.mark.parametrize("name", sorted(METHODS.keys() - INDEXED))
def test_what_a_method_makes_stays_where_its_operands_are(name):
    parameters = SimpleNamespace(normalize=True, t=0.5, scale=1.0, density=0.5, seed=0)
    with FakeTensorMode():
        operands = [torch.empty(64, dtype=torch.float64, device="cuda") for _ in range(2)]
        context = TileContext("t", 0, 64, [0, 1], [0.5, 0.25], STATISTICS.get(name), parameters)
        result = METHODS[name].combine(operands, context)
        assert (result.device.type, result.dtype, result.shape) == ("cuda", torch.float64, (64,))
        with pytest.raises(RuntimeError, match="device"):
            result + torch.empty(64, dtype=torch.float64)  # as one that was left behind would be found
