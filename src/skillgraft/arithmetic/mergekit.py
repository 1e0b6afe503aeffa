"""A merge recipe as a mergekit configuration, where mergekit 0.1.5 has the same thing under another form."""

from __future__ import annotations

from typing import Any

import yaml

from skillgraft.arithmetic.merge_recipe import MergeRecipe, OperandSpec
from skillgraft.errors import RecipeError

NAMES = {
    "linear": "linear",
    "task_arithmetic": "task_arithmetic",
    "slerp": "slerp",
    "ties": "ties",
    "dare": "dare_linear",
    "dare_ties": "dare_ties",
    "model_stock": "model_stock",
}


def mergekit_yaml(recipe: MergeRecipe) -> str:
    """Return the configuration; `RecipeError` where mergekit has no equivalent, with the reason.

    mergekit computes in `dtype`, so float32 is asked for and the output's dtype apart. What it does otherwise stays its
    own: it draws other random masks for DARE, and takes config and tokenizer from the base.
    """
    parameters = recipe.parameters.model_dump()
    if recipe.method == "ties" and parameters["scope"] == "model":
        raise RecipeError(
            "ties with scope 'model' has no mergekit equivalent: mergekit trims each tensor apart; set "
            "parameters.scope to tensor"
        )
    models = []
    for number, operand in enumerate(recipe.operands):
        entry: dict[str, Any] = {"model": _name(operand, number, recipe)}
        if recipe.method not in ("slerp", "model_stock"):
            entry["parameters"] = {"weight": operand.weight}
            if "density" in parameters:
                entry["parameters"]["density"] = parameters["density"]
        models.append(entry)
    config: dict[str, Any] = {"merge_method": NAMES[recipe.method], "models": models}
    if recipe.method == "slerp":
        config["base_model"] = models[0]["model"]
        config["parameters"] = {"t": parameters["t"]}
    else:
        if recipe.method != "linear":
            config["base_model"] = str(recipe.base)
        given = {"normalize": parameters.get("normalize", False)} if recipe.method != "model_stock" else {}
        if "scale" in parameters and parameters["scale"] != 1:
            given["lambda"] = parameters["scale"]
        if recipe.method in ("dare", "dare_ties"):
            given["rescale"] = True
        if given:
            config["parameters"] = given
    config["dtype"] = "float32"
    if recipe.dtype is not None:
        config["out_dtype"] = recipe.dtype
    if recipe.method == "linear" or recipe.method == "slerp":
        config["tokenizer_source"] = str(recipe.base)
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True)


def _name(operand: OperandSpec, number: int, recipe: MergeRecipe) -> str:
    where = f"operands.{number}"
    if operand.skill is not None:
        raise RecipeError(f"{where}: a skill has no mergekit equivalent; mergekit takes checkpoints and LoRA adapters")
    if operand.minus is not None and operand.minus != recipe.base:
        raise RecipeError(
            f"{where}: minus {operand.minus} has no mergekit equivalent; mergekit subtracts the base from every model"
        )
    model = operand.model or recipe.base
    return f"{model}+{operand.adapter}" if operand.adapter is not None else str(model)
