"""A merge recipe as a mergekit configuration, where mergekit 0.1.5 has the same thing under another form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from skillgraft.arithmetic.merge_recipe import MergeRecipe, OperandSpec
from skillgraft.arithmetic.plan import check_number
from skillgraft.checkpoint.layout import read_layout
from skillgraft.checkpoint.tensor_io import TORCH_NAMES
from skillgraft.errors import RecipeError

NAMES = {
    "linear": "linear",
    "task_arithmetic": "task_arithmetic",
    "slerp": "slerp",
    "ties": "ties",
    "dare": "dare_linear",
    "dare_ties": "dare_ties",
    "model_stock": "model_stock",
    "breadcrumbs": "breadcrumbs",
    "ratatouille": "linear",
}


def mergekit_yaml(recipe: MergeRecipe) -> str:
    """Return the configuration; `RecipeError` where mergekit has no equivalent, with the reason.

    mergekit computes in `dtype`, so float32 is asked for, and the output's dtype apart: the recipe's, else the one that
    the base stores. DARE: mergekit's own `rescale` multiplies so that the L1 norm of each tensor's vector stays what it
    was, and not by 1/density as the paper does; it is switched off and `lambda` = 1/density takes its place, so that
    the definition is the same and only the random masks are others. TIES: of magnitudes that are equal at the threshold
    mergekit keeps as many as fill up the density, Skillgraft all. Breadcrumbs: mergekit rounds the number kept down and
    Skillgraft the number dropped, so that mergekit may keep one or two elements of a tensor fewer. An adapter is merged
    into its model first, in the model's dtype unless mergekit is started with `--lora-merge-dtype float32`.
    """
    check_number(recipe)
    if recipe.method not in NAMES:
        raise RecipeError(
            f"{recipe.method} has no mergekit equivalent: mergekit 0.1.5 does not have the method; available: "
            f"{', '.join(NAMES)}"
        )
    parameters = recipe.parameters.model_dump()
    if recipe.method == "ties" and parameters["scope"] == "model":
        raise RecipeError(
            "ties with scope 'model' has no mergekit equivalent: mergekit trims each tensor apart; set "
            "parameters.scope to tensor"
        )
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
        if recipe.method not in ("slerp", "model_stock"):
            entry["parameters"] = {"weight": operand.weight}
            if "density" in parameters:
                entry["parameters"]["density"] = parameters["density"]
            if recipe.method == "breadcrumbs":
                entry["parameters"]["density"] = round(1 - parameters["beta"] - parameters["gamma"], 12)
                entry["parameters"]["gamma"] = parameters["beta"]  # mergekit's name for the share of outliers
        models.append(entry)
    config: dict[str, Any] = {"merge_method": NAMES[recipe.method], "models": models}
    if NAMES[recipe.method] == "linear":
        # mergekit takes config and tokenizer from the first model; a `base_model` would be a summand of weight 1, and
        # `tokenizer_source` would drop the rows that pad the vocabulary.
        first = [entry for entry in models if entry["model"] == base]
        first = first or [{"model": base, "parameters": {"weight": 0.0}}]
        config["models"] = first + [entry for entry in models if entry["model"] != base]
    else:
        config["base_model"] = base
    given = _parameters(recipe, parameters)
    if recipe.method == "slerp":
        names = [entry["model"] for entry in models]
        if base not in names:
            raise RecipeError(
                f"slerp whose base {base} is neither of the two models has no mergekit equivalent: mergekit takes "
                "config and tokenizer from one of them; name that one as base"
            )
        given["t"] = parameters["t"] if names[0] == base else 1 - parameters["t"]
    if given:
        config["parameters"] = given
    out_dtype = recipe.dtype or _stored_dtype(recipe.base)
    config["dtype"] = "float64" if out_dtype == "float64" else "float32"
    config["out_dtype"] = out_dtype
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True)


def _parameters(recipe: MergeRecipe, parameters: dict[str, Any]) -> dict[str, Any]:
    """Return mergekit's parameters of the whole merge."""
    if recipe.method in ("slerp", "model_stock"):
        return {}
    given: dict[str, Any] = {"normalize": parameters.get("normalize", recipe.method == "ratatouille")}
    factor = parameters.get("scale", 1.0)
    if recipe.method in ("dare", "dare_ties"):
        given["rescale"] = False
        factor = 1 / parameters["density"]
    if factor != 1:
        given["lambda"] = factor
    return given


def _name(operand: OperandSpec, number: int, base: str) -> str:
    where = f"operands.{number}"
    if operand.skill is not None:
        raise RecipeError(
            f"{where}: a skill has no mergekit equivalent; mergekit takes checkpoints and LoRA adapters: make one of "
            "it with skillgraft convert --to peft, and name that as adapter"
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
    found = sorted({TORCH_NAMES[info.dtype] for info in read_layout(base).tensors.values() if info.is_float})
    if len(found) != 1:
        raise RecipeError(
            f"{base} stores {' and '.join(found) or 'no floats'}, and each tensor would keep its own dtype, which has "
            "no mergekit equivalent; set dtype"
        )
    return found[0]
