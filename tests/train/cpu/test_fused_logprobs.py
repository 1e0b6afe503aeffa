import pytest
import torch
from torch.nn.functional import linear
from trl.kernels.chunked_logprob import ChunkedLogProbFunction
from trl.trainer import utils as trl_utils

from skillgraft.models.loading import load_model
from skillgraft.train.cpu import fused_logprobs
from skillgraft.train.cpu.fused_logprobs import LogProbabilities, fast_head
from tests.tiny import tiny_checkpoint

WORDS, WIDTH, POSITIONS = 53, 12, 11
OUTPUTS = ("log_probs", "entropy", "is_top1")


def operands(bias=True, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = [(POSITIONS, WIDTH), (WORDS, WIDTH), (WORDS,)][: 3 if bias else 2]
    made = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]
    targets = torch.randint(WORDS, (POSITIONS,), generator=generator)
    slopes = torch.randn(2, POSITIONS, generator=generator)
    return made, targets, slopes


def reference(made, targets, slopes, temperature, softcap, scale):
    """log p, entropy, top-1 and gradients in fp64 by autograd."""
    exact = [x.detach().double().requires_grad_() for x in made]
    z = linear(*exact) * scale
    z = (z if softcap is None else softcap * torch.tanh(z / softcap)) / temperature
    log_p = torch.log_softmax(z, -1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    chosen = log_p.gather(-1, targets[:, None])[:, 0]
    grads = torch.autograd.grad((chosen * slopes[0]).sum() + (entropy * slopes[1]).sum(), exact)
    return chosen, entropy, z.argmax(-1) == targets, grads


@pytest.mark.parametrize(("temperature", "softcap", "scale"), [(1.0, None, 1.0), (0.7, None, 2.0), (0.7, 3.0, 0.5)])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_log_softmax(monkeypatch, temperature, softcap, scale, bias):
    monkeypatch.setattr(fused_logprobs, "TILE", 4)  # 11 positions: tiles of 4, 4, 3, rows of 3, 1, …
    monkeypatch.setattr(fused_logprobs, "ROWS", 3)
    made, targets, slopes = operands(bias)
    expected = reference(made, targets, slopes, temperature, softcap, scale)
    given = (*made, None)[:3]
    log_p, entropy, *nothing, top = LogProbabilities.apply(*given, targets, temperature, 7, softcap, scale, OUTPUTS)
    grads = torch.autograd.grad((log_p * slopes[0]).sum() + (entropy * slopes[1]).sum(), made)
    assert nothing == [None, None]
    assert torch.equal(top, expected[2])
    for got, wanted in zip((log_p, entropy, *grads), (*expected[:2], *expected[3]), strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=3e-5)


@pytest.mark.parametrize("which", [0, 1])
def test_one_of_the_two_may_carry_no_gradient(which):
    made, targets, slopes = operands()
    expected = reference(made, targets, slopes * torch.tensor([[1.0 - which], [which]]), 1.0, None, 1.0)
    out = LogProbabilities.apply(*made, targets, 1.0, 7, None, 1.0, OUTPUTS)
    grads = torch.autograd.grad((out[which] * slopes[which]).sum(), made)
    for got, wanted in zip(grads, expected[3], strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)


def test_frozen_weights_get_no_gradient_and_unasked_outputs_are_none():
    made, targets, _ = operands()
    made[1].requires_grad_(False)
    log_p, *others = LogProbabilities.apply(*made, targets, 1.0, 7)
    log_p.sum().backward()
    assert others == [None] * 4
    assert made[1].grad is None
    assert made[0].grad.abs().sum() > 0
    with pytest.raises(ValueError, match="mean_logits"):
        LogProbabilities.apply(*made, targets, 1.0, 7, None, 1.0, ("mean_logits",))


def test_under_bf16_autocast_the_error_is_no_larger_than_trls():
    made, targets, slopes = operands(bias=False)
    expected = reference(made, targets, slopes, 1.0, None, 1.0)
    wanted = torch.cat([expected[0], *(grad.flatten() for grad in expected[3])])
    errors = []
    for function in (ChunkedLogProbFunction, LogProbabilities):
        with torch.autocast("cpu", torch.bfloat16):
            log_p, entropy, *_ = function.apply(*made, None, targets, 1.0, 32768, None, 1.0, OUTPUTS)
        grads = torch.autograd.grad((log_p * slopes[0]).sum() + (entropy * slopes[1]).sum(), made)
        errors.append((torch.cat([log_p, *(grad.flatten() for grad in grads)]) - wanted).norm() / wanted.norm())
    assert errors[1] < 1.3 * errors[0]
    assert errors[1] < 0.01


def scored(directory, ours):
    """Log-probabilities and gradient of TRL's fused head over the last 4 of 10 tokens, and the positions scored."""
    model = load_model(directory)
    trl_utils.add_fused_lm_head(model)
    ids = torch.arange(5, 25).reshape(2, 10)
    labels = ids.clone()
    labels[:, :6] = -100
    labels[1, 9] = -100
    positions = []

    def run():
        function = trl_utils._ChunkedLogProbFunction

        class Spy:
            @staticmethod
            def apply(hidden, *rest):
                positions.append(hidden.shape[0])
                return function.apply(hidden, *rest)

        trl_utils._ChunkedLogProbFunction = Spy
        try:
            return model(input_ids=ids, labels=labels, fused_lm_head=True).log_probs
        finally:
            trl_utils._ChunkedLogProbFunction = function

    if ours:
        with fast_head():
            found = run()
    else:
        found = run()
    found.exp().sum().backward()
    return found.detach(), model.model.layers[0].mlp.up_proj.weight.grad, positions


def test_trls_trainers_score_labels_alone_and_get_the_same_numbers(tmp_path):
    directory = tiny_checkpoint(tmp_path / "model")
    before = trl_utils._use_triton, trl_utils._ChunkedLogProbFunction
    everything, gradient, positions = scored(directory, ours=False)
    compact, compact_gradient, fewer = scored(directory, ours=True)
    assert (positions, fewer) == ([18], [7])  # 2 rows of 9 next tokens; 4 + 3 of them carry a label
    torch.testing.assert_close(compact, everything)
    torch.testing.assert_close(compact_gradient, gradient)
    assert (trl_utils._use_triton, trl_utils._ChunkedLogProbFunction) == before
