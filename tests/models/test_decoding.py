"""Decoding: the same answers as Transformers' `generate`, drawn from the model's own probabilities."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from skillgraft.models.decoding import packed, sampling
from skillgraft.models.decoding.any_model import RoomyLayer
from skillgraft.models.decoding.packed import PackedDecoder, is_packable
from skillgraft.models.decoding.sampling import common_prefix, draw, sample, warpers
from skillgraft.models.loading import load_model
from tests.tiny import tiny_checkpoint, tiny_tokenizer

PROMPTS = [[5, 6, 7, 8], [9, 10], [5, 6, 7, 8], [11, 12, 13, 14, 15, 16], [9, 10], [17]]
BOTH = pytest.mark.parametrize("own", [True, False], ids=["packed", "the model's forward"])


@pytest.fixture
def model(tmp_path):
    return load_model(tiny_checkpoint(tmp_path / "model", initializer_range=0.3))  # does not repeat one word for ever


@pytest.fixture
def by(monkeypatch):
    """Choose the decoder."""
    return lambda own: monkeypatch.setattr(sampling, "is_packable", lambda model: own)


def from_generate(model, prompt, ends, length):
    made = model.generate(
        input_ids=torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        max_new_tokens=length,
        eos_token_id=ends,
        pad_token_id=0,
    )
    return made[0, len(prompt) :].tolist()


@BOTH
@pytest.mark.parametrize("at_once", [1, 2, 4, None])
def test_the_likeliest_answers_are_those_of_generate(model, by, own, at_once):
    by(own)
    free = [from_generate(model, prompt, [319], 9) for prompt in PROMPTS]
    ends = sorted({answer[place] for answer, place in zip(free, (1, 3, 1, 5, 3, 0), strict=True)})
    expected = [from_generate(model, prompt, ends, 9) for prompt in PROMPTS]
    assert len({len(answer) for answer in expected}) > 2  # rows end at different times
    model.train()
    done = []
    assert sample(model, PROMPTS, ends, 9, warp=None, at_once=at_once, progress=done.append) == expected
    assert model.training
    assert done == sorted(done)
    assert done[-1] == len(PROMPTS)


SMALL = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FAMILIES = {
    "Llama": LlamaConfig(**SMALL),
    "Llama, tied": LlamaConfig(**SMALL, tie_word_embeddings=True),
    "Llama, biases and wide heads": LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True, head_dim=16),
    "Llama 3's rotation": LlamaConfig(**SMALL, rope_parameters=LLAMA3),
    "YaRN": LlamaConfig(**SMALL, rope_parameters=YARN),
    "Mistral": MistralConfig(**SMALL, sliding_window=None),
    "Qwen2": Qwen2Config(**SMALL),
    "Qwen3": Qwen3Config(**SMALL, head_dim=8),
    "one group": Qwen3Config(**{**SMALL, "num_key_value_heads": 1}, head_dim=16),
    "no groups": Qwen2Config(**{**SMALL, "num_key_value_heads": 4}),
}


def random_model(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:
                parameter += torch.randn_like(parameter) * 0.3
    return model


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_logits_are_those_of_the_models_forward(config):
    """Rows that share a prefix, come at different times and go: each logit is that of the whole text, in fp32."""
    model = random_model(config)
    assert is_packable(model)
    start = [40, 41, 42]
    texts = {0: [*start, 7, 8, 9], 1: [*start, 50], 2: [*start, 7, 8, 9], 3: [*start, 60, 61]}
    decoder = PackedDecoder(model, 3, 40, torch.float32, start)
    with torch.inference_mode():
        rows = [0, 1, 2]
        logits = decoder.admit([texts[row] for row in rows])
        for step in range(8):
            for place, row in enumerate(rows):
                whole = model(input_ids=torch.tensor([texts[row]])).logits[0, -1]
                torch.testing.assert_close(logits[place], whole, rtol=0, atol=2e-4)
            tokens = torch.tensor([20 + 3 * row + step for row in rows])
            for token, row in zip(tokens.tolist(), rows, strict=True):
                texts[row] = [*texts[row], token]
            if step == 2:
                order = decoder.keep([row != 0 for row in rows])
                rows, tokens = [rows[place] for place in order], tokens[order]
                assert sorted(rows) == [1, 2]
            logits = decoder.step(tokens)
            if step == 3:
                rows, logits = [*rows, 3], torch.cat([logits, decoder.admit([texts[3]])])


@pytest.mark.parametrize(
    "config",
    [
        MistralConfig(**SMALL, sliding_window=8),
        Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=8, max_window_layers=1),
        LlamaConfig(**SMALL, hidden_act="gelu"),
        LlamaConfig(**SMALL, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
    ],
    ids=["a window", "a window in some layers", "another activation", "a rotation that depends on the length"],
)
def test_what_is_not_computed_here_goes_to_the_models_forward(config):
    assert not is_packable(random_model(config))


def test_a_model_under_an_adapter_is_computed_as_merged(model):
    from peft import LoraConfig, get_peft_model

    prompts = [PROMPTS[0]]
    before = sample(model, prompts, [319], 6, None)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    adapted.merge_adapter()
    made = sample(adapted.get_base_model(), prompts, [319], 6, None)
    assert made == [from_generate(adapted, prompts[0], [319], 6)]
    assert made != before


def test_the_prefix_is_what_all_begin_with_and_leaves_a_token_to_each():
    assert common_prefix([[1, 2, 3, 4], [1, 2, 5]]) == [1, 2]
    assert common_prefix([[1, 2, 3], [1, 2, 3, 4]]) == [1, 2]
    assert common_prefix([[1, 2, 3], [1, 2, 3]]) == []
    assert common_prefix([[1], [1, 2]]) == []
    assert common_prefix([[3], [1, 2]]) == []


def test_prompts_are_read_in_parts_of_bounded_size(model, monkeypatch):
    expected = sample(model, PROMPTS, [319], 5, None)
    monkeypatch.setattr(packed, "READ_TOKENS", 5)
    assert sample(model, PROMPTS, [319], 5, None) == expected
    monkeypatch.setattr(sampling, "CACHE_BYTES", 1)  # one row at a time
    assert sample(model, PROMPTS, [319], 5, None) == expected


def test_a_token_is_drawn_as_often_as_it_is_likely():
    logits = torch.tensor([2.0, -1.0, -40.0, 0.5, 1.0, -torch.inf])
    n = 200_000
    torch.manual_seed(0)
    tokens = draw(logits.expand(n, -1), torch.rand(n, dtype=torch.float64))
    p = torch.softmax(logits.double(), -1)
    counts = tokens.bincount(minlength=6).double()
    assert counts[[2, 5]].tolist() == [0, 0]
    kept = p > 1e-9
    chi_square = ((counts - n * p)[kept] ** 2 / (n * p[kept])).sum()
    assert chi_square < 16.3  # 99.9% of draws with 3 degrees of freedom


@pytest.mark.parametrize("chance", [0.0, 0.5, 1 - 2**-53])
def test_no_chance_draws_an_impossible_token(chance):
    logits = torch.full((1, 50_000), -torch.inf)
    logits[0, 1000:1003] = torch.tensor([0.0, 30.0, 0.0])
    assert 1000 <= draw(logits, torch.tensor([chance], dtype=torch.float64)).item() <= 1002


def spied(model, monkeypatch, **settings):
    """A sample with the log-probabilities that its tokens were drawn with, by the random number that drew each."""
    drawn_from = {}

    def spy(logits, chances):
        token = draw(logits, chances)
        log_p = torch.log_softmax(logits, -1).gather(-1, token[:, None])[:, 0]
        drawn_from.update(zip(chances.tolist(), log_p.tolist(), strict=True))
        return token

    monkeypatch.setattr(sampling, "draw", spy)
    torch.manual_seed(1)
    answers = sample(model, PROMPTS, [*range(3, 100)], 12, warpers(GenerationConfig(**settings)))
    return answers, drawn_from


@BOTH
def test_answers_are_drawn_from_the_models_own_probabilities(model, monkeypatch, by, own):
    """Each drawn token's log-probability is that of a plain forward pass over prompt and answer."""
    by(own)
    answers, drawn_from = spied(model, monkeypatch, temperature=0.8)
    torch.manual_seed(1)
    chances = torch.rand(len(PROMPTS), 12, dtype=torch.float64)
    assert len({len(answer) for answer in answers}) > 1
    with torch.no_grad():
        for row, (prompt, answer) in enumerate(zip(PROMPTS, answers, strict=True)):
            logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1] / 0.8
            expected = torch.log_softmax(logits, -1).gather(-1, torch.tensor(answer)[:, None])[:, 0]
            got = torch.tensor([drawn_from[chances[row, step].item()] for step in range(len(answer))])
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_the_models_forward_reads_each_prompt_once_and_drops_rows(model, by):
    by(False)
    shapes = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    torch.manual_seed(1)
    sample(model, PROMPTS, [*range(3, 100)], 12, warpers(GenerationConfig(temperature=0.8)))
    assert shapes[0] == (4, 6)  # distinct prompts
    assert shapes[1][0] <= 6
    assert shapes[-1][0] < 6


@BOTH
def test_when_rows_leave_decides_nothing(model, monkeypatch, by, own):
    by(own)
    answers = []
    for keep, refill in ((0.0, 0.0), (0.8, 0.5), (1.0, 1.0)):
        monkeypatch.setattr(sampling, "KEEP", keep)
        monkeypatch.setattr(sampling, "REFILL", refill)
        answers.append(spied(model, monkeypatch)[0])
    assert answers[0] == answers[1] == answers[2]
    assert len({len(answer) for answer in answers[0]}) > 1
    assert all(set(answer[:-1]).isdisjoint(range(3, 100)) for answer in answers[0])


@BOTH
def test_top_k_and_top_p_narrow_what_is_drawn(model, by, own):
    by(own)
    greedy = sample(model, PROMPTS, [319], 6, warp=None)
    assert sample(model, PROMPTS, [319], 6, warpers(GenerationConfig(top_k=1))) == greedy
    assert sample(model, PROMPTS, [319], 6, warpers(GenerationConfig(top_k=0, top_p=1e-6))) == greedy
    kinds = [type(warp).__name__ for warp in warpers(GenerationConfig(temperature=0.7, top_k=0, top_p=1.0, min_p=0.1))]
    assert kinds == ["TemperatureLogitsWarper", "MinPLogitsWarper"]


@BOTH
def test_under_autocast_the_cache_is_in_its_dtype(model, monkeypatch, by, own):
    by(own)
    dtypes = []
    init = PackedDecoder.__init__

    def spy(self, model, rows, length, dtype, prefix):
        dtypes.append(dtype)
        init(self, model, rows, length, dtype, prefix)
        assert self._cache.dtype == dtype

    monkeypatch.setattr(PackedDecoder, "__init__", spy)
    ends = [tiny_tokenizer().eos_token_id]
    made = sample(model, PROMPTS, ends, 5, None, torch.autocast("cpu", torch.bfloat16))
    assert [len(answer) for answer in made] == [5] * 6
    assert dtypes == ([torch.bfloat16] if own else [])
    layer = RoomyLayer(3)
    with torch.autocast("cpu", torch.bfloat16):
        keys, values = layer.update(torch.ones(2, 1, 4, 8), torch.ones(2, 1, 4, 8))
    assert (keys.dtype, values.dtype, layer.get_seq_length()) == (torch.bfloat16, torch.bfloat16, 4)
