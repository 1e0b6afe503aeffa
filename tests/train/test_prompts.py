from skillgraft.models.prompts import INSTRUCTION, as_prompt, encode_prompts
from tests.tiny import CHAT_TEMPLATE, tiny_tokenizer


def own_tokenizer(template):
    import copy

    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.chat_template = template
    return tokenizer


def test_chat_with_system_role():
    tokenizer = own_tokenizer(CHAT_TEMPLATE)
    prompt = as_prompt(tokenizer, "When?")
    assert [m["role"] for m in prompt] == ["system", "user"]
    batch = encode_prompts(tokenizer, [prompt, as_prompt(tokenizer, "When was the harbour built?")])
    text = tokenizer.decode(batch["input_ids"][1])
    expected = f"<|im_start|>system\n{INSTRUCTION}<|im_end|>\n<|im_start|>user\nWhen was the harbour built?<|im_end|>\n"
    assert text == expected + "<|im_start|>assistant\n"
    assert batch["attention_mask"][0, 0] == 0  # the shorter one is padded on the left
    assert batch["attention_mask"][:, -1].tolist() == [1, 1]


def test_template_that_refuses_a_system_role():
    tokenizer = own_tokenizer(
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHAT_TEMPLATE
    )
    assert as_prompt(tokenizer, "When?") == [{"role": "user", "content": f"{INSTRUCTION} When?"}]


def test_no_template():
    tokenizer = own_tokenizer(None)
    assert as_prompt(tokenizer, "When?") == f"{INSTRUCTION}\nQuestion: When?\nAnswer:"
    ids = encode_prompts(tokenizer, [as_prompt(tokenizer, "When?")])["input_ids"][0]
    assert tokenizer.decode(ids).endswith("Question: When?\nAnswer:")


def test_worked_examples_and_text_stand_in_the_form_of_questions():
    examples = [("Who?", "Ann")]
    tokenizer = own_tokenizer(CHAT_TEMPLATE)
    assert as_prompt(tokenizer, "When?", examples=examples) == [
        {"role": "system", "content": INSTRUCTION},
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "Ann"},
        {"role": "user", "content": "When?"},
    ]
    assert as_prompt(tokenizer, "When?", context="In 1900.")[1:] == [
        {"role": "user", "content": "In 1900.\n\nQuestion: When?"}
    ]
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}" + CHAT_TEMPLATE
    turns = as_prompt(own_tokenizer(refusing), "When?", examples=examples)
    assert [turn["content"] for turn in turns] == [f"{INSTRUCTION} Who?", "Ann", "When?"]
    plain = own_tokenizer(None)
    worked = "Question: Who?\nAnswer: Ann\n\nQuestion: When?\nAnswer:"
    assert as_prompt(plain, "When?", examples=examples) == f"{INSTRUCTION}\n{worked}"
    assert as_prompt(plain, "When?", context="T") == f"{INSTRUCTION}\nT\n\nQuestion: When?\nAnswer:"
