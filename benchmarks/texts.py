"""Generates seeded, distinct inputs, so that only the task's prompt can be cached."""

import random
from collections.abc import Iterable
from typing import Any

INSTRUCTION = "Guess the age of the writer of this message:"
"""Looks like a task, so that the router embeds it before it refuses the task."""

NEW_INSTRUCTION = "Guess the age of writer {number} of this message:"
"""Another one for each request, with the request's number."""

_WHO = ("The manager", "A customer", "Dr. Elena Novak", "My neighbour", "The committee",
        "A spokesman for Brightwell Ltd", "The coach", "Our team in Porto", "Samuel Okoye",
        "The museum in Leeds")  # fmt: skip
_DID = ("reviewed", "praised", "cancelled", "announced", "complained about", "repaired",
        "postponed", "recommended", "inspected", "sold")  # fmt: skip
_WHAT = ("the new contract", "a broken dishwasher", "last night's concert", "the quarterly report",
         "a set of garden chairs", "the bus line to Salzburg", "an old software licence",
         "the training schedule", "two boxes of samples", "the reading lamp")  # fmt: skip
_HOW = ("without any delay", "after a long discussion", "to everyone's surprise", "much too late",
        "with great care", "for the second time this month", "before the holidays",
        "in front of the whole staff", "at half the usual price", "rather reluctantly")  # fmt: skip


def texts(count: int, seed: int) -> list[str]:
    """Return that many distinct English texts of 20 to 35 words."""
    rng = random.Random(seed)  # noqa: S311  # not for secrets
    made = []
    for number in range(count):
        sentences = [
            f"{rng.choice(_WHO)} {rng.choice(_DID)} {rng.choice(_WHAT)} {rng.choice(_HOW)}."
            for _ in range(2)
        ]
        made.append(f"Item {seed}-{number}: " + " ".join(sentences))
    return made


def instructed(
    model: str, instruction: str, found: Iterable[str], first: int
) -> list[dict[str, Any]]:
    """Return chats that have an instruction before each text. first: number of the first one."""
    return [
        {
            "model": model,
            "messages": [
                {"role": "user", "content": f'{instruction.format(number=number)} "{text}"'}
            ],
        }
        for number, text in enumerate(found, first)
    ]
