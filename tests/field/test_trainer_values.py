"""Values of `trainer:` and `adapt:` that cannot work here are refused when the plan is checked, with what to do."""

from pathlib import Path

import pytest

from skillgraft.adapters.lora import lora_config
from skillgraft.errors import RecipeError
from skillgraft.train.distill import distill_arguments
from skillgraft.train.rl import rl_arguments
from skillgraft.train.sft import sft_arguments

NAN, INF = float("nan"), float("inf")
UNUSED = Path("unused")


def sft(**trainer):
    return sft_arguments(trainer, UNUSED, 0)


def rl(algorithm="grpo", adapted=False, **trainer):
    return rl_arguments({"f1": 1.0}, trainer, adapted, UNUSED, 0, algorithm)


def distill(**trainer):
    return distill_arguments(trainer, False, UNUSED, 0)


EVAL = "cannot be set: the trainer has no questions to be scored on here: an eval stage scores the model; leave it out"
ROWS = "cannot be set: the stage makes the rows and says which of their tokens carry loss; leave it out"
TOKENS = "cannot be set: the checkpoint's tokenizer decides it: set it in tokenizer_config.json; leave it out"
SPREAD = (
    "cannot be set: training is spread by starting the run with a launcher (skillgraft docs several-gpus); leave it"
)


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"eval_strategy": "steps"}, f"trainer: eval_strategy {EVAL}"),
        ({"load_best_model_at_end": True}, f"trainer: load_best_model_at_end {EVAL}"),
        ({"eval_on_start": True}, f"trainer: eval_on_start {EVAL}"),
        ({"assistant_only_loss": True}, f"trainer: assistant_only_loss {ROWS}"),
        ({"completion_only_loss": True}, f"trainer: completion_only_loss {ROWS}"),
        ({"padding_free": True}, f"trainer: padding_free {ROWS}"),
        ({"dataset_kwargs": {"skip_prepare_dataset": True}}, f"trainer: dataset_kwargs {ROWS}"),
        ({"use_liger_kernel": True}, "use_liger_kernel needs a GPU, and this machine has none; leave it out"),
        ({"activation_offloading": True}, "activation_offloading needs a GPU, and this machine has none"),
        ({"tf32": True}, "trainer: tf32 needs a GPU, and this machine has none; leave it out"),
        ({"eos_token": "<|nothing|>"}, f"trainer: eos_token {TOKENS}"),
        ({"pad_token": "<|nothing|>"}, f"trainer: pad_token {TOKENS}"),
        (
            {"chat_template_path": "template.jinja"},
            "chat_template_path cannot be set: prompts are made with the model's",
        ),
        ({"deepspeed": "ds.json"}, f"trainer: deepspeed {SPREAD}"),
        ({"fsdp": "full_shard"}, f"trainer: fsdp {SPREAD}"),
        ({"accelerator_config": {"split_batches": True}}, f"trainer: accelerator_config {SPREAD}"),
        ({"push_to_hub": True}, "'push_to_hub' cannot be set there; the recipe and the machine decide it"),
        (
            {"hub_model_id": "me/mine"},
            "hub_model_id cannot be set: a run's results stay in its folder: skillgraft skill",
        ),
        (
            {"model_init_kwargs": {"torch_dtype": "bfloat16"}},
            "model_init_kwargs cannot be set: the stage loads the model",
        ),
        ({"save_total_limit": 1}, "trainer: save_total_limit cannot be set: resuming rests on it; leave it out"),
        ({"optim": "adamw_8bit"}, "trainer: optim: adamw_8bit cannot be used with these arguments: "),
        ({"optim": "galore_adamw"}, "trainer: optim: galore_adamw cannot be used with these arguments: "),
        ({"optim": "adamw_torch_fusd"}, "optim is 'adamw_torch_fusd'; did you mean 'adamw_torch_fused'? available"),
        ({"optim": "adam"}, "trainer: optim is 'adam'; did you mean 'ada"),
        ({"adam_beta1": 1.0}, "optim: adamw_torch_fused cannot be used with these arguments: ValueError: Invalid beta"),
        ({"adam_epsilon": 0}, "trainer: adam_epsilon is 0, expected more than 0"),
        ({"optim_args": "x"}, "trainer: optim: adamw_torch_fused cannot be used with these arguments"),
        ({"per_device_train_batch_size": 2.5}, "per_device_train_batch_size is 2.5, expected a whole number"),
        ({"per_device_train_batch_size": 0}, "trainer: per_device_train_batch_size is 0, expected at least 1"),
        ({"per_device_train_batch_size": True}, "per_device_train_batch_size is True, expected a whole number"),
        ({"gradient_accumulation_steps": 0}, "trainer: gradient_accumulation_steps is 0, expected at least 1"),
        ({"gradient_accumulation_steps": 1.5}, "gradient_accumulation_steps is 1.5, expected a whole number"),
        ({"learning_rate": None}, "trainer: learning_rate is None, expected a number"),
        ({"learning_rate": -1}, "trainer: learning_rate is -1, expected more than 0"),
        ({"learning_rate": 0}, "trainer: learning_rate is 0, expected more than 0"),
        ({"learning_rate": NAN}, "trainer: learning_rate is nan, expected more than 0"),
        ({"learning_rate": INF}, "trainer: learning_rate is inf, expected more than 0"),
        ({"learning_rate": [1e-4]}, "trainer: learning_rate is [0.0001], expected a number"),
        ({"warmup_steps": -1}, "trainer: warmup_steps is -1, expected at least 0"),
        ({"warmup_steps": NAN}, "trainer: warmup_steps is nan, expected at least 0"),
        ({"warmup_ratio": 0.1}, "'warmup_ratio' is not an argument of SFTConfig; did you mean 'warmup_steps'?"),
        ({"weight_decay": -0.1}, "trainer: weight_decay is -0.1, expected at least 0"),
        ({"max_grad_norm": -1.0}, "trainer: max_grad_norm is -1.0, expected at least 0"),
        ({"max_grad_norm": NAN}, "trainer: max_grad_norm is nan, expected at least 0"),
        ({"label_smoothing_factor": 2}, "trainer: label_smoothing_factor is 2, expected from 0 to 1"),
        ({"num_train_epochs": 0}, "trainer: num_train_epochs is 0, expected more than 0"),
        ({"num_train_epochs": INF}, "trainer: num_train_epochs is inf, expected more than 0"),
        ({"max_steps": 0}, "trainer: max_steps is 0, expected at least 1"),
        ({"max_steps": -5}, "trainer: max_steps is -5, expected at least 1"),
        ({"max_steps": 2.5}, "trainer: max_steps is 2.5, expected a whole number"),
        ({"logging_steps": 0}, "trainer: logging_steps is 0, expected more than 0"),
        (
            {"lr_scheduler_type": "cosin"},
            "trainer: lr_scheduler_type is 'cosin'; did you mean 'cosine'? ",
        ),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "reduce_lr_on_plateau requires an eval strategy"),
        ({"lr_scheduler_kwargs": {"num_cycles": 2}}, "lr_scheduler_type: linear cannot be used with these arguments: "),
        (
            {"lr_scheduler_type": "cosine_with_min_lr"},
            "cosine_with_min_lr cannot be used with these arguments: ValueError",
        ),
        (
            {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 1.0}},
            "polynomial cannot be used with these arguments: ValueError: lr_end (1.0) must be smaller than initial lr",
        ),
        (
            {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": -1.0}},
            "trainer: lr_scheduler_kwargs make learning rates of 0.0, … ",
        ),
        ({"lr_scheduler_kwargs": "x"}, "trainer: lr_scheduler_kwargs is 'x', expected a mapping or null"),
        ({"loss_type": "nlll"}, "trainer: loss_type is 'nlll'; did you mean 'nll'? available: chunked_nll, dft, nll"),
        ({"log_level": "quiet"}, "trainer: log_level is 'quiet'; available: critical, debug"),
        ({"logging_strategy": False}, "put the word in quotes"),
        ({"gradient_checkpointing": "yes"}, "gradient_checkpointing is 'yes', expected true or false"),
        ({"gradient_checkpointing_kwargs": {"reentrant": True}}, "gradient_checkpointing_kwargs holds reentrant: True"),
        ({"dataloader_persistent_workers": True}, "dataloader_num_workers: 0 cannot be used with these arguments"),
        ({"neftune_noise_alpha": -5}, "trainer: neftune_noise_alpha is -5, expected more than 0"),
        ({"truncation_mode": "middle"}, "trainer: truncation_mode is 'middle'; available: keep_end, keep_start"),
        ({"logging_nan_inf_filter": True}, "'logging_nan_inf_filter' cannot be set there"),
    ],
)
def test_a_value_that_sft_cannot_use(trainer, message):
    with pytest.raises(RecipeError) as error:
        sft(**trainer)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"beta": -0.1}, "trainer: beta is -0.1, expected at least 0"),
        ({"beta": NAN}, "trainer: beta is nan, expected at least 0"),
        ({"epsilon": 0}, "trainer: epsilon is 0, expected more than 0"),
        ({"epsilon": -0.2}, "trainer: epsilon is -0.2, expected more than 0"),
        ({"temperature": 0}, "trainer: temperature is 0, expected more than 0"),
        ({"temperature": -1.0}, "trainer: temperature is -1.0, expected more than 0"),
        ({"top_p": 0}, "trainer: top_p is 0, expected more than 0 and at most 1"),
        ({"top_k": -1}, "trainer: top_k is -1, expected at least 0"),
        ({"min_p": 2}, "trainer: min_p is 2, expected from 0 to 1"),
        ({"repetition_penalty": 0}, "trainer: repetition_penalty is 0, expected more than 0"),
        ({"num_generations": 1}, "trainer: num_generations is 1, expected at least 2"),
        ({"num_generations": 0}, "trainer: num_generations is 0, expected at least 2"),
        ({"num_generations": None}, "trainer: num_generations is None, expected at least 2"),
        ({"num_generations": 7}, "generation_batch_size (64) must be divisible by num_generations (7)"),
        ({"per_device_train_batch_size": 12}, "generation_batch_size (12) must be divisible by num_generations (8)"),
        ({"num_iterations": 0}, "trainer: num_iterations is 0, expected at least 1"),
        ({"steps_per_generation": 0}, "trainer: steps_per_generation is 0, expected at least 1"),
        ({"loss_type": "dapoo"}, "trainer: loss_type is 'dapoo'; did you mean 'dapo'?"),
        ({"scale_rewards": "batches"}, "trainer: scale_rewards is 'batches'; did you mean 'batch'?"),
        ({"importance_sampling_level": "word"}, "importance_sampling_level is 'word'; available: sequence, token"),
        (
            {"generation_kwargs": {"temprature": 1.0}},
            "generation_kwargs: 'temprature' is not known; did you mean 'temp",
        ),
        ({"cache_implementation": "roomy"}, "generation_kwargs are refused by Transformers"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs cannot be set: prompts are made"),
        ({"use_vllm": True}, "trainer: use_vllm needs a GPU, and this machine has none; leave it out"),
        ({"remove_unused_columns": True}, f"trainer: remove_unused_columns {ROWS}"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size is not supported by GRPO"),
        ({"sync_ref_model": True}, "trainer: sync_ref_model needs beta: without it there is no reference model"),
        ({"max_steps": -1}, "trainer: max_steps is -1, expected a positive number: RL has no natural end"),
    ],
)
def test_a_value_that_rl_cannot_use(trainer, message):
    with pytest.raises(RecipeError) as error:
        rl(**trainer)
    assert message in str(error.value)


def test_a_reference_that_moves_needs_all_weights():
    with pytest.raises(RecipeError, match="sync_ref_model cannot be used with adapt: the start without its adapter is"):
        rl(adapted=True, sync_ref_model=True, beta=0.1)
    assert rl(sync_ref_model=True, beta=0.1).sync_ref_model


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"beta": 1.5}, "beta must be in [0.0, 1.0], got 1.5"),
        ({"temperature": 0}, "trainer: temperature is 0, expected more than 0"),
        (
            {"teacher_model_name_or_path": "x"},
            "teacher_model_name_or_path cannot be set: the teacher is the stage's own",
        ),
        ({"max_completion_length": 2.5}, "trainer: max_completion_length is 2.5, expected a whole number or null"),
    ],
)
def test_a_value_that_distill_cannot_use(trainer, message):
    with pytest.raises(RecipeError) as error:
        distill(**trainer)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lora_alpha": "1e1"}, "adapt: lora_alpha is the text '1e1', expected a number; YAML reads 1e1 as text: 10.0"),
        ({"r": "8"}, "adapt: r is '8', expected a rank of at least 1"),
        ({"lora_alpha": 0}, "adapt: lora_alpha is 0, expected more than 0: it is a factor of the update"),
        ({"lora_alpha": NAN}, "adapt: lora_alpha is nan, expected more than 0"),
        ({"lora_alpha": None}, "adapt: lora_alpha is None, expected a whole number or a number"),
        ({"lora_dropout": 1.0}, "adapt: lora_dropout is 1.0, expected from 0 to below 1"),
        ({"lora_dropout": -0.1}, "adapt: lora_dropout is -0.1, expected from 0 to below 1"),
        ({"bias": "some"}, "adapt: bias is 'some', expected 'none' or 'all' or 'lora_only'"),
        ({"use_rslora": "yes"}, "adapt: use_rslora is 'yes', expected true or false"),
        ({"rank_pattern": 3}, "adapt: rank_pattern is 3, expected a mapping or null"),
    ],
)
def test_a_value_that_lora_cannot_use(arguments, message):
    with pytest.raises(RecipeError) as error:
        lora_config(arguments)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "trainer",
    [
        {"eval_strategy": "no", "assistant_only_loss": False, "deepspeed": None, "fsdp": "", "use_liger_kernel": False},
        {"max_steps": -1, "num_train_epochs": 0.5, "warmup_steps": 0.1, "weight_decay": 0, "max_grad_norm": INF},
        {"optim": "sgd", "lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": 0.5}},
        {"optim": "adafactor", "lr_scheduler_type": "constant"},
        {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 2}, "max_steps": 10},
        {"lr_scheduler_type": "inverse_sqrt", "gradient_checkpointing": True, "max_length": None},
        {"gradient_checkpointing_kwargs": {"use_reentrant": False}, "neftune_noise_alpha": 5, "loss_type": "dft"},
    ],
)
def test_values_that_work_stay_allowed(trainer):
    arguments = sft(**trainer)
    assert all(getattr(arguments, key) == value for key, value in trainer.items() if key in ("max_steps", "loss_type"))


def test_every_setting_of_the_shipped_recipes_is_allowed():
    from skillgraft.recipe.load import load_recipe

    for file in sorted(Path("recipes").glob("*.yaml")):
        for stage in load_recipe(file).stages.values():
            if stage.kind in ("sft", "self_edit", "single_passage"):
                sft(**stage.trainer)
            if stage.kind == "distill":
                distill(**stage.trainer)
            if stage.kind == "rl":
                rl(stage.algorithm, stage.adapt is not None, **stage.trainer)


def test_a_trial_of_arguments_leaves_no_folder_and_draws_no_random_number(tmp_path, monkeypatch):
    import torch

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    sft()
    assert torch.equal(before, torch.random.get_rng_state())
    assert not list(tmp_path.iterdir())
