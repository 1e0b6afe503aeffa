"""A comparison for the terminal: the vectors, the pairs by module kind and by layers, the pairs of groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from skillgraft.geometry.pair_wording import plain, signed
from skillgraft.support.escape import escape_line, escape_tree
from skillgraft.support.formatting import MISSING, finite, one_decimal, percent, significant

LABEL_CHARACTERS = 28
MOST_COLUMNS = 5


def comparison_tables(facts: Mapping[str, Any]) -> Iterator[Table]:
    """Yield the tables of a comparison's facts (see `geometry.compare`)."""
    escaped = escape_tree(facts)
    yield _vectors(escaped)
    parts = {**escaped["kinds"], **escaped["layers"]}
    relative = all("relative_norm" in vector for vector in escaped["vectors"])
    yield from _by_part(
        "norm relative to the base" if relative else "norm",
        [vector["label"] for vector in escaped["vectors"]],
        parts,
        lambda part, row: significant(part["vectors"][row]["relative_norm" if relative else "norm"]),
    )
    names = [f"{pair['one']}, {pair['other']}" for pair in escaped["pairs"]]
    yield from _by_part("cosine", names, parts, lambda part, row: signed(part["pairs"][row]["cosine"]))
    if len(escaped["groups"]) > 1:
        yield _groups(escaped)


def _vectors(facts: Mapping[str, Any]) -> Table:
    table = Table(title=Text(f"{facts['elements']:,} parameters"), title_justify="left")
    with_base = any("relative_norm" in vector for vector in facts["vectors"])
    with_spectra = any("spectrum" in vector for vector in facts["vectors"])
    names = ["Group", "Vector", "Norm", *(["Relative", "Below bf16"] if with_base else []), "Zeros"]
    names += ["Effective rank", "Stable rank", "Energy at 8"] if with_spectra else []
    for name in names:
        table.add_column(name, justify="left" if name in ("Group", "Vector") else "right", overflow="fold")
    for vector in facts["vectors"]:
        cells = [vector["group"], escape_line(vector["label"], LABEL_CHARACTERS), significant(vector["norm"])]
        if with_base:
            cells += [significant(vector.get("relative_norm")), percent(vector.get("below_bf16"))]
        cells.append(percent(vector["zeros"]))
        if with_spectra:
            spectrum = vector.get("spectrum", {})
            cells += [one_decimal(spectrum.get("effective_rank")), one_decimal(spectrum.get("stable_rank"))]
            cells.append(percent(spectrum.get("energy", {}).get("8")))
        table.add_row(*map(Text, cells))
    return table


def _by_part(title: str, columns: Sequence[str], parts: Mapping[str, Any], cell: Any) -> Iterator[Table]:
    """Yield tables with a row for each kind of module and each group of layers, a few of `columns` in each."""
    for first in range(0, len(columns), MOST_COLUMNS):
        places = range(first, min(first + MOST_COLUMNS, len(columns)))
        table = Table(title=Text(title), title_justify="left")
        table.add_column("Part", no_wrap=True)
        for place in places:
            heading = Text(escape_line(columns[place], 2 * LABEL_CHARACTERS))
            table.add_column(heading, justify="right", overflow="fold")
        names = list(parts)
        for name, following in zip(names, [*names[1:], ""], strict=True):
            starts_layers = following.startswith("layer") and not name.startswith("layer")
            cells = (Text(cell(parts[name], place)) for place in places)
            table.add_row(Text(name), *cells, end_section=starts_layers)
        yield table


def _groups(facts: Mapping[str, Any]) -> Table:
    table = Table(title=Text("pairs by group"), title_justify="left")
    for name in ("Groups", "Pairs", "Mean cosine", "From", "To", "Chance sd, widest", "Same sign"):
        table.add_column(name, justify="left" if name == "Groups" else "right")
    for group in facts["groups"]:
        cosine = group["cosine"]
        values = [signed(cosine["mean"]), signed(cosine["least"]), signed(cosine["most"])]
        chance = plain(group["chance_sd"]) if finite(group["chance_sd"]) is not None else MISSING
        cells = [group["groups"], str(group["pairs"]), *values, chance, percent(group["same_sign"])]
        table.add_row(*map(Text, cells))
    return table
