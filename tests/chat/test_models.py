import pytest
import torch

from skillgraft.arithmetic import inject
from skillgraft.chat.commands import Settings
from skillgraft.chat.models import ChatModel
from skillgraft.chat.plan import plan_chat
from skillgraft.data.tasks import Question
from skillgraft.errors import DataError
from skillgraft.evals.answers import evaluate_checkpoint
from tests.tiny import weights

PROMPT = "who built the harbour"


@pytest.fixture(scope="module")
def grafted(folder):
    [spec] = plan_chat([], str(folder / "sft"), [(str(folder / "recall"), 1.0)])
    return ChatModel(spec)


def test_another_lambda_in_memory_is_the_checkpoint_on_disk(folder, grafted, tmp_path):
    """One after the other, as a person does: what an earlier λ changed must not stay."""
    question = Question(document="x", question=PROMPT, answers=("y",))
    for number, scale in enumerate((1.0, 0.5, -2.0, 0.0, 1.0)):
        grafted.inject(scale)
        inject(folder / "sft", folder / "recall", tmp_path / str(number), scale=scale)
        held = grafted._model.state_dict()
        assert all(torch.equal(held[name], tensor) for name, tensor in weights(tmp_path / str(number)).items())
        expected = evaluate_checkpoint(tmp_path / str(number), [question], max_new_tokens=8, retention=False)
        answer = grafted.answer(PROMPT, Settings(tokens=8), seed=0)
        assert [answer.text] == expected["answers"]
        assert answer.scale == scale
    target = weights(folder / "sft")
    grafted.inject(0.0)
    assert all(torch.equal(grafted._model.state_dict()[name], tensor) for name, tensor in target.items())


def test_ctrl_c_in_the_midst_of_an_injection_leaves_no_mixture(folder, grafted, monkeypatch):
    grafted.inject(1.0)
    whole = grafted._model.state_dict()["model.norm.weight"].clone()

    def stop(*_):
        grafted._model.state_dict()["model.norm.weight"].zero_()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(grafted._weights, "become", stop)
        with pytest.raises(KeyboardInterrupt):
            grafted.inject(0.5)
    grafted.inject(1.0)  # the λ from before: its weights are made again
    assert torch.equal(grafted._model.state_dict()["model.norm.weight"], whole)


def test_sampling_follows_the_seed_alone(grafted):
    grafted.inject(1.0)
    warm = Settings(tokens=12, temperature=1.5)
    before = torch.random.get_rng_state()
    texts = [grafted.answer(PROMPT, warm, seed).text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_longest_answer(grafted):
    grafted.inject(1.0)
    answer = grafted.answer(PROMPT, Settings(tokens=3), 0)
    assert answer.tokens <= 3
    assert answer.cut == (answer.tokens == 3)
    with pytest.raises(DataError, match=r"the answer may have 600, the model takes 512 in all; shorten the prompt"):
        grafted.answer(PROMPT, Settings(tokens=600), 0)
