"""The cost replay's coins: common random numbers, so that two arms explore and audit alike."""

import hashlib
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from serving.evidence import pacing


class RequestCoins:
    """Draws each coin by the request and by the place in the code that asks for it.

    The product draws from the system's generator. Drawn so, two runs of an arm differ by chance,
    and two arms by more than what their levers change.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._request = 0
        self._asked: Counter[str] = Counter()

    def ask(self, request: int) -> None:
        """Say which request comes next, by its number in the mix."""
        self._request = request
        self._asked.clear()

    def random(self) -> float:
        """Return a number in [0, 1) for the function that tosses a coin."""
        # Two frames up: `coin` is between.
        code = sys._getframe(2).f_code
        place = f"{code.co_filename.rpartition('/')[2]}/{code.co_qualname}"
        self._asked[place] += 1
        name = f"{self._seed}/{self._request}/{place}/{self._asked[place]}"
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Have the product's coins drawn so meanwhile."""
        before = pacing._random
        pacing._random = self  # type: ignore[assignment]
        try:
            yield
        finally:
            pacing._random = before
