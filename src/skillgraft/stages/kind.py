"""The contract of a stage kind: one object that says all that the pipeline needs to know of it. Loads no torch.

A kind is one file of this package and one line in `KINDS`. Its settings mark references, data and what does not count
for the address (`settings.base`); what a kind leaves out here has the default below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from skillgraft.settings.base import Settings
from skillgraft.stages.context import Context, StageResult
from skillgraft.stages.costs import Costing, Needs, cheap
from skillgraft.stages.reading import read_data
from skillgraft.stages.row_labels import RowLabel, result_label

if TYPE_CHECKING:
    from skillgraft.stages.planned import PlannedStage, Preflight

Makes = Literal["checkpoint", "skill", "table", "documents", "questions", "router"]
Stages = Mapping[str, "PlannedStage"]


def _nothing(*_: Any) -> tuple[()]:
    return ()


@dataclass(frozen=True)
class StageKind:
    """A kind of stage; `version` is raised when its code or a default changes what it makes from the same settings.

    Attributes:
        settings: the class of its settings; the literal of its field `kind` is the kind's name.
        makes: what stages that refer to it get.
        run: makes the result in `context.out`; imports heavy libraries itself. None where `expand` is given.
        trained_from: the field that names the checkpoint whose weights it changes.
        check: raises for settings that contradict each other; given the stage's name and settings.
        read: reads and checks the data at the paths of its settings; returns digests by what they are of.
        writes: the data fields (`documents`, `questions`) that can name it, given its settings.
        preflight: yields remarks, and raises for what base, data and machine rule out, before anything runs.
        needs: time, memory and disk.
        label: what a table calls the model or skill that it makes.
        rows: of a table, what its rows are: label, role, note and cost, by the model's name.
        names: of a table, names that stand in it and so enter the address.
        parallel: all processes of a launcher train it together.
        expand: the stages that it stands for: name -> (where their settings stand, a stage's mapping).
    """

    settings: type[Settings]
    makes: Makes
    run: Callable[[Any, Context], StageResult] | None = None
    version: int = 1
    trained_from: str | None = None
    check: Callable[[str, Any], Any] = _nothing
    read: Callable[[Any], dict[str, str]] = read_data
    writes: Callable[[Any], Iterable[str]] = _nothing
    preflight: Callable[[Preflight], Iterable[str]] = _nothing
    needs: Callable[[Any, Costing], Needs] = cheap
    label: Callable[[Stages, str], RowLabel] = result_label
    rows: Callable[[Stages, PlannedStage], dict[str, dict[str, Any]]] | None = None
    names: Callable[[Any], Any] = _nothing
    parallel: bool = False
    expand: Callable[[str, Any], dict[str, tuple[str, dict[str, Any]]]] | None = None

    @property
    def name(self) -> str:
        """What a recipe calls the kind."""
        return get_args(self.settings.model_fields["kind"].annotation)[0]
