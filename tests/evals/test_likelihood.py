import torch

from skillgraft.data.tasks import Question
from skillgraft.evals.likelihood import answer_likelihood
from skillgraft.models.loading import load_model, load_tokenizer
from skillgraft.models.prompts import as_prompt, encode_prompts
from tests.tiny import tiny_checkpoint

QUESTIONS = [
    Question("a", "Who built the harbour?", ("the island", "nobody at all")),
    Question("b", "When?", ("1900", "1900")),
    Question("c", "Which lighthouse of the small island was built in the year 1900 and why?", (" the harbour ",)),
]


def by_hand(model, tokenizer, question, answer):
    """One sequence without padding, token by token."""
    prompt = encode_prompts(tokenizer, [as_prompt(tokenizer, question)])["input_ids"][0]
    tokens = torch.tensor(tokenizer(answer, add_special_tokens=False)["input_ids"])
    total = 0.0
    for place, token in enumerate(tokens):
        logits = model(input_ids=torch.cat([prompt, tokens[:place]])[None]).logits[0, -1].double()
        total += torch.log_softmax(logits, dim=-1)[token].item()
    return total / len(tokens)


def test_it_is_the_mean_log_probability_of_the_likeliest_answer(tmp_path):
    checkpoint = tiny_checkpoint(tmp_path / "model", seed=4)
    model, tokenizer = load_model(checkpoint).eval(), load_tokenizer(checkpoint)
    with torch.no_grad():
        expected = [max(by_hand(model, tokenizer, q.question, a.strip()) for a in q.answers) for q in QUESTIONS]
    for batch_size in (1, 2, 16):  # rows of other lengths beside it change nothing but rounding
        found = answer_likelihood(model, tokenizer, QUESTIONS, batch_size)
        torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=0, atol=1e-5)


def test_nan_is_not_passed_over(tmp_path):
    checkpoint = tiny_checkpoint(tmp_path / "model")
    model, tokenizer = load_model(checkpoint).eval(), load_tokenizer(checkpoint)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    assert all(value != value for value in answer_likelihood(model, tokenizer, QUESTIONS))
