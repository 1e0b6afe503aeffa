"""Having texts written, by a local checkpoint or an endpoint, so that a kill loses at most what is under way."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from skillgraft.errors import EndpointError
from skillgraft.support.atomic import atomic_write_text
from skillgraft.support.progress import Progress

if TYPE_CHECKING:
    from skillgraft.data.synthesis.endpoint import Endpoint
    from skillgraft.data.synthesis.local_writer import LocalWriter

RENDERINGS = "renderings.jsonl"
"""In a stage's working folder: one line for each rendering as it came."""


class Request(Protocol):
    """What is asked of a model; what it writes is kept under `id`."""

    @property
    def id(self) -> str:
        """What the answer is kept under."""

    @property
    def prompt(self) -> str:
        """What the model is asked."""

    @property
    def seed(self) -> int:
        """What its randomness follows from."""


@dataclass(frozen=True)
class Generated:
    """One text: its text, whether it ended by itself, and the tokens of prompt and text together."""

    text: str
    complete: bool
    tokens: int


class GenerationCache:
    """What is written already, by the request's id; a line that a kill tore is cut off."""

    def __init__(self, work: Path, name: str = RENDERINGS) -> None:
        self.file = work / name
        self.by_id: dict[str, dict[str, Any]] = {}
        if not self.file.exists():
            return
        content = self.file.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(self.file, len(whole))
        for line in whole.decode().split("\n")[:-1]:
            record = json.loads(line)
            self.by_id[record["id"]] = record

    def add(self, records: Iterable[dict[str, Any]]) -> None:
        """Keep records of `id`, `text`, `complete` and `tokens` for good."""
        new = list(records)
        with self.file.open("ab") as out:
            out.write("".join(json.dumps(record) + "\n" for record in new).encode())
            out.flush()
            os.fsync(out.fileno())
        self.by_id |= {record["id"]: record for record in new}

    def drop(self, ids: Iterable[str]) -> None:
        """Forget the records of these ids for good, so that they are asked for again."""
        gone = set(ids)
        self.by_id = {name: record for name, record in self.by_id.items() if name not in gone}
        atomic_write_text(self.file, "".join(json.dumps(record) + "\n" for record in self.by_id.values()))


def write_locally(
    requests: Sequence[Request], writer: LocalWriter, batch_size: int, kept: GenerationCache, progress: Progress
) -> None:
    """Have `writer` write what is missing, in batches of like length.

    The batches are those of all requests, so that a stage that goes on after a kill computes the same as one that
    never stopped.
    """
    by_length = sorted(requests, key=lambda request: (len(request.prompt), request.id))
    for start in range(0, len(by_length), batch_size):
        batch = by_length[start : start + batch_size]
        if any(request.id not in kept.by_id for request in batch):
            written = writer.write([request.prompt for request in batch], [request.seed for request in batch])
            kept.add(_record(request, generated) for request, generated in zip(batch, written, strict=True))
        progress(start + len(batch), len(requests))


def write_by_endpoint(
    requests: Sequence[Request],
    endpoint: Endpoint,
    at_once: int,
    kept: GenerationCache,
    progress: Progress,
    *,
    temperature: float,
    top_p: float,
    max_tokens: int,
    what: str = "renderings",
) -> None:
    """Have `endpoint` write what is missing, `at_once` at a time; a failure raises after what is under way is kept."""
    missing = iter([request for request in requests if request.id not in kept.by_id])
    running: dict[Future[Generated], Request] = {}
    failure: EndpointError | None = None
    with ThreadPoolExecutor(at_once) as pool, _stopping(endpoint):
        while True:
            while failure is None and len(running) < at_once and (request := next(missing, None)):
                ask = pool.submit(
                    endpoint.ask,
                    request.prompt,
                    temperature=temperature,
                    top_p=top_p,
                    max_tokens=max_tokens,
                    seed=request.seed,
                )
                running[ask] = request
            if not running:
                break
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                request = running.pop(done)
                try:
                    kept.add([_record(request, done.result())])
                except EndpointError as error:
                    failure = failure or error
                    endpoint.stop()
            progress(len(kept.by_id), len(requests))
    if failure is not None:
        written = sum(request.id in kept.by_id for request in requests)
        raise EndpointError(f"{failure} ({written} of {len(requests)} {what} are kept)") from failure


@contextmanager
def _stopping(endpoint: Endpoint) -> Iterator[None]:
    """Let nobody wait for another try once the block is left, as by Ctrl-C."""
    try:
        yield
    finally:
        endpoint.stop()


def _record(request: Request, made: Generated) -> dict[str, Any]:
    return {"id": request.id, "text": made.text, "complete": made.complete, "tokens": made.tokens}
