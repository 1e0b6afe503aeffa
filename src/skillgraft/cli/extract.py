"""The verb `extract` on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from skillgraft.cli.console import progress_bar, say
from skillgraft.cli.options import JsonOption, OutOption, ThreadsOption


def extract(
    rl: Annotated[Path, typer.Option(help="Checkpoint after RL, or a PEFT adapter trained on the SFT model.")],
    sft: Annotated[Path, typer.Option(help="The SFT checkpoint that RL started from.")],
    out: OutOption,
    dtype: Annotated[str, typer.Option(help="float32, or bfloat16 for half the size.")] = "float32",
    domain: Annotated[str | None, typer.Option(help="What the skill was learnt on, for its manifest.")] = None,
    license_id: Annotated[
        str | None, typer.Option("--license", metavar="SPDX", help="SPDX identifier for the manifest.")
    ] = None,
    language: Annotated[str | None, typer.Option(help="ISO 639 code of the domain's texts, such as en.")] = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Extract the skill vector v = RL - SFT from two checkpoints; exactly low-rank where RL ran with LoRA."""
    from skillgraft import arithmetic

    with progress_bar("extracting", as_json, unit="elements") as progress:
        skill = arithmetic.extract(
            rl,
            sft,
            out,
            dtype=dtype,
            domain=domain,
            license=license_id,
            language=language,
            threads=threads,
            progress=progress,
        )
    norm = sum(skill.norm(name) ** 2 for name in skill.names) ** 0.5
    if as_json:
        facts = {"skill": str(out), "form": skill.form, "tensors": len(skill.names), "norm": norm}
        print(json.dumps(facts | {"remarks": skill.manifest.remarks}))
    else:
        say(f"{out}: {skill.form}, {len(skill.names)} tensors, norm {norm:.4g}")
        for remark in skill.manifest.remarks:
            say(f"remark: {remark}")
