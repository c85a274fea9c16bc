"""What a benchmark run consists of."""

from dataclasses import dataclass

TASKS = ("sentiment", "topic", "ner", "translation")
SCORED_TASKS = ("sentiment", "topic")
CLIENTS = (1, 16, 64)


@dataclass(frozen=True, slots=True)
class Cell:
    """One task at one number of clients. requests: in one round."""

    task: str
    clients: int
    requests: int


def cells(*, quick: bool) -> list[Cell]:
    """Return the cells of a run; at least two requests a client where there is time for it."""
    scored = {1: 20, 16: 96, 64: 192}
    generated = {1: 6, 16: 32, 64: 64}
    if quick:
        scored = {1: 8, 16: 32}
        generated = {1: 2, 16: 16}
    return [
        Cell(task, clients, requests)
        for task in TASKS
        for clients, requests in (scored if task in SCORED_TASKS else generated).items()
    ]
