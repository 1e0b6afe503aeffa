"""Export a merge recipe as a mergekit configuration, where mergekit 0.1.5 has an equivalent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from skillgraft.arithmetic.merge_schema import MergeRecipe, OperandSpec
from skillgraft.arithmetic.methods import all_methods, get_method
from skillgraft.arithmetic.plan import check_number
from skillgraft.checkpoint.layout import read_layout
from skillgraft.checkpoint.tensor_io import TORCH_NAMES
from skillgraft.errors import RecipeError


def mergekit_yaml(recipe: MergeRecipe) -> str:
    """Export a recipe as mergekit's YAML; `RecipeError` where it has no equivalent, with the reason.

    mergekit computes in `dtype`, so float32 is asked for, and the output's dtype apart: the recipe's, else the one that
    the base stores. DARE: mergekit's own `rescale` multiplies so that the L1 norm of each tensor's vector stays what it
    was, and not by 1/density as the paper does; it is switched off and `lambda` = 1/density takes its place, so that
    the definition is the same and only the random masks are others. TIES: of magnitudes that are equal at the threshold
    mergekit keeps as many as fill up the density, Skillgraft all. Breadcrumbs: mergekit rounds the number kept down and
    Skillgraft the number dropped, so that mergekit may keep one or two elements of a tensor fewer. An adapter is merged
    into its model first, in the model's dtype unless mergekit is started with `--lora-merge-dtype float32`.
    """
    check_number(recipe)
    method = get_method(recipe.method)
    mergekit = method.mergekit
    if mergekit is None:
        available = [name for name, each in all_methods().items() if each.mergekit is not None]
        raise RecipeError(
            f"{recipe.method} has no mergekit equivalent: mergekit 0.1.5 does not have the method; available: "
            f"{', '.join(available)}"
        )
    of_model = mergekit.of_model(recipe.parameters)
    base = _path(recipe.base, "base")
    models: list[dict[str, Any]] = []
    for number, operand in enumerate(recipe.operands):
        if operand.weights is not None:
            raise RecipeError(
                f"operands.{number}: weights by pattern have no equivalent in what is written; give one weight"
            )
        entry: dict[str, Any] = {"model": _name(operand, number, base)}
        if any(entry["model"] == other["model"] for other in models):
            raise RecipeError(f"operands.{number}: {entry['model']} stands there twice; mergekit takes each model once")
        if method.weighted:
            entry["parameters"] = {"weight": operand.weight, **of_model}
        models.append(entry)
    names = [entry["model"] for entry in models]
    config: dict[str, Any] = {"merge_method": mergekit.merge_method, "models": models}
    if mergekit.lists_base:
        # mergekit takes config and tokenizer from the first model; a `base_model` would be a summand of weight 1, and
        # `tokenizer_source` would drop the rows that pad the vocabulary.
        first = [entry for entry in models if entry["model"] == base]
        first = first or [{"model": base, "parameters": {"weight": 0.0}}]
        config["models"] = first + [entry for entry in models if entry["model"] != base]
    else:
        config["base_model"] = base
    parameters = mergekit.of_merge(recipe.parameters, names, base)
    if parameters:
        config["parameters"] = parameters
    out_dtype = recipe.dtype or _stored_dtype(recipe.base)
    config["dtype"] = "float64" if out_dtype == "float64" else "float32"
    config["out_dtype"] = out_dtype
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True)


def _name(operand: OperandSpec, number: int, base: str) -> str:
    where = f"operands.{number}"
    if operand.skill is not None:
        raise RecipeError(
            f"{where}: a skill has no mergekit equivalent; mergekit takes checkpoints and LoRA adapters: make one of "
            "it with skillgraft skill convert --to peft, and name that as adapter"
        )
    if operand.minus is not None and _path(operand.minus, where) != base:
        raise RecipeError(
            f"{where}: minus {operand.minus} has no mergekit equivalent; mergekit subtracts the base from every model"
        )
    model = _path(operand.model, where) if operand.model is not None else base
    return f"{model}+{_path(operand.adapter, where)}" if operand.adapter is not None else model


def _path(path: Path, where: str) -> str:
    """Return a path as mergekit is to read it: whole, and without the characters that mean something else to it."""
    name = str(path.resolve())
    if set(name) & {"+", "@"}:
        raise RecipeError(
            f"{where}: {name} holds + or @, which mergekit reads as an adapter or a revision; give another path to it"
        )
    return name


def _stored_dtype(base: Path) -> str:
    """Return the one dtype of a checkpoint's floats."""
    dtypes = sorted({TORCH_NAMES[info.dtype] for info in read_layout(base).tensors.values() if info.is_float})
    if len(dtypes) != 1:
        raise RecipeError(
            f"{base} stores {' and '.join(dtypes) or 'no floats'}, and each tensor would keep its own dtype, which has "
            "no mergekit equivalent; set dtype"
        )
    return dtypes[0]
