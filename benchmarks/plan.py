"""What a benchmark run consists of."""

from collections.abc import Sequence
from dataclasses import dataclass

TASKS = ("sentiment", "topic", "ner", "translation")
SCORED_TASKS = ("sentiment", "topic")
CLIENTS = (1, 16, 64)

# Requests in a round, by number of clients.
_SCORED = {1: 40, 16: 128, 64: 256}
_GENERATED = {1: 6, 16: 32, 64: 128}


@dataclass(frozen=True, slots=True)
class Cell:
    """One task at one number of clients. requests: in one round."""

    task: str
    clients: int
    requests: int


def cells(tasks: Sequence[str], clients: Sequence[int], *, quick: bool) -> list[Cell]:
    """Return the cells of a run: two requests a client and more, fewer when quick."""
    share = 2 if quick else 1
    return [
        Cell(task, count, (_SCORED if task in SCORED_TASKS else _GENERATED)[count] // share)
        for task in tasks
        for count in clients
    ]
