"""Tiny bases as people bring them: with another tokenizer, template, generation configuration, code or adapter."""

import json
from pathlib import Path

import yaml

from skillgraft.pipeline.preflight import check_plan
from skillgraft.run import prepare
from tests.recipes import tiny_recipe
from tests.tiny import edit_json, tiny_checkpoint


def base_with(path, *, template=None, tokenizer=None, generation=None, config=None, end_tokens=False, **llama):
    """Save a tiny base whose files are changed: `template` (`...`: none), keys of the others; return its path.

    `end_tokens`: its tokenizer puts the end token after every text.
    """
    path = tiny_checkpoint(path, **{"initializer_range": 0.3, **llama})
    if template is not None:
        (path / "chat_template.jinja").unlink()
        if template is not ...:
            (path / "chat_template.jinja").write_text(template)
    if end_tokens:
        ends = {"type": "Sequence", "id": "A", "type_id": 0}, {"SpecialToken": {"id": "<|im_end|>", "type_id": 0}}
        single = [{"Sequence": {"id": "A", "type_id": 0}}, ends[1]]
        special = {"<|im_end|>": {"id": "<|im_end|>", "ids": [2], "tokens": ["<|im_end|>"]}}
        after = {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": special}
        edit_json(path / "tokenizer.json", post_processor=after)
    for file, changes in (
        ("tokenizer_config.json", tokenizer),
        ("generation_config.json", generation),
        ("config.json", config),
    ):
        if changes:
            edit_json(path / file, **changes)
    return path


def recipe_on(folder, base=None, **stages):
    """Write a tiny recipe on a base (default: a sound one) whose stages are `stages`; return its path."""
    folder = Path(folder)
    if base is not None and base != folder / "base":
        base.rename(folder / "base")
    file = tiny_recipe(folder)
    recipe = yaml.safe_load(file.read_text())
    recipe["stages"] = {name: {**recipe["stages"].get(name, {}), **settings} for name, settings in stages.items()}
    file.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return file


def planned(file, processes=1):
    """Plan a recipe as the dry run does; return the remarks."""
    _, _, stages = prepare(file, (), file.parent / "runs", lambda line: None)
    return check_plan(stages, processes)


def questions_file(folder, count=4, question="When was it built?", answer="1900"):
    """Write questions as JSON Lines; return the path."""
    file = Path(folder) / "questions.jsonl"
    lines = ({"document": "d", "question": f"{question} {n}", "answers": [answer]} for n in range(count))
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file
