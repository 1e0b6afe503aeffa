import pytest
import torch

from skillgraft.adapters.lora import LoraAdapter
from skillgraft.data.documents import Document
from skillgraft.data.tasks import Question
from skillgraft.errors import RecipeError, TrainingError
from skillgraft.models.loading import load_model, load_tokenizer
from skillgraft.train.sft import fit, sft_arguments, train_sft
from tests.tiny import tiny_checkpoint

pytestmark = pytest.mark.train

FAST = {"max_steps": 30, "per_device_train_batch_size": 2, "learning_rate": 3e-3, "warmup_steps": 0}


def folders(tmp_path):
    out, work = tmp_path / "out", tmp_path / "work"
    out.mkdir()
    work.mkdir()
    return out, work


def loss(directory, text):
    tokenizer, model = load_tokenizer(directory), load_model(directory)
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return model(input_ids=ids, labels=ids).loss.item()


def test_training_lowers_the_loss_on_its_document_alone(tmp_path):
    start = tiny_checkpoint(tmp_path / "start")
    out, work = folders(tmp_path)
    document = Document("a", "Vell", "The harbour of Vell was built in 1901.")
    trained = train_sft(start, out, work, documents=[document], trainer=FAST)
    assert loss(out, document.rendered()) < loss(start, document.rendered()) - 1
    tokens = len(load_tokenizer(start)(document.rendered())["input_ids"]) + 1
    assert trained.tokens == tokens * 30
    assert trained.curve[0]["loss"] > trained.curve[29]["loss"]
    assert load_tokenizer(out).chat_template == load_tokenizer(start).chat_template


def test_only_the_answer_carries_loss(tmp_path):
    start = tiny_checkpoint(tmp_path / "start")
    out, work = folders(tmp_path)
    question = Question("a", "When was the harbour of Vell built?", ("1901",))
    trained = train_sft(start, out, work, questions=[question], trainer={**FAST, "max_steps": 3})
    answer = len(load_tokenizer(start)("1901", add_special_tokens=False)["input_ids"])
    assert 3 * answer <= trained.tokens <= 3 * (answer + 3)  # the answer, its end, and the template's line break


def test_lora_trains_factors_only(tmp_path):
    start = tiny_checkpoint(tmp_path / "start")
    out, work = folders(tmp_path)
    document = Document("a", "Vell", "The harbour of Vell was built in 1901.")
    train_sft(start, out, work, documents=[document], trainer=FAST, adapter=LoraAdapter({"r": 2}))
    assert (out / "adapter" / "adapter_config.json").exists()
    before, after = load_model(start).state_dict(), load_model(out).state_dict()
    assert torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])
    assert loss(out, document.rendered()) < loss(start, document.rendered())


def test_rows_without_loss(tmp_path):
    start = tiny_checkpoint(tmp_path / "start")
    args = sft_arguments(FAST, tmp_path, 0)
    rows = [{"input_ids": [5, 6, 7], "labels": [-100, -100, -100]}]
    with pytest.raises(TrainingError, match="no token carries loss"):
        fit(load_model(start), load_tokenizer(start), rows, args, adapter=None, checkpoint_seconds=9, progress=None)


def test_a_document_beyond_the_models_context(tmp_path):
    start = tiny_checkpoint(tmp_path / "start", max_position_embeddings=64)
    out, work = folders(tmp_path)
    document = Document("a", "Vell", "The harbour of Vell was built in 1901. " * 9)
    with pytest.raises(TrainingError, match=r"a row of \d+ tokens does not fit into the model's context of 64"):
        train_sft(start, out, work, documents=[document], trainer=FAST)
    train_sft(start, out, work, documents=[document], trainer={**FAST, "max_steps": 1, "max_length": 64})


def test_nothing_to_train_on(tmp_path):
    start = tiny_checkpoint(tmp_path / "start")
    out, work = folders(tmp_path)
    with pytest.raises(TrainingError, match="neither documents nor questions"):
        train_sft(start, out, work)
    with pytest.raises(RecipeError, match="'epochs' is not an argument of SFTConfig"):
        train_sft(start, out, work, documents=[Document("a", "", "text")], trainer={"epochs": 3})


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"num_train_epochs": -1}, "num_train_epochs is -1, expected more than 0"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size is 0, expected at least 1"),
    ],
)
def test_a_trainer_that_would_learn_nothing_is_refused(tmp_path, trainer, message):
    with pytest.raises(RecipeError, match=message):
        sft_arguments(trainer, tmp_path, 0)
