"""Whose time a busy replica's second is."""

import math
import time
from collections.abc import Callable

from serving.contracts.settings import Replicas


class ReplicaMeter:
    """Divides the time of a model's replicas evenly among the inputs that are with them.

    With n inputs under way, each takes 1/n of the replicas that autoscaling aims at for n, and of
    no more than n. So the shares of all inputs add up to the replicas' busy time: a batch costs
    what a lone input does. Idle time is nobody's. Where there are several gateways, each takes
    its own inputs for an even part of all.

    The integral of a share over time is kept as one number that runs, so that entering and leaving
    take constant time. clock: monotonic seconds.
    """

    def __init__(
        self, replicas: Replicas, gateways: int = 1, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._replicas = replicas
        self._gateways = gateways
        self._clock = clock
        self._inputs = 0
        self._share_s = 0.0
        self._at_s = clock()

    def enter(self, inputs: int) -> "Lap":
        """Begin the time of so many inputs."""
        return Lap(self, inputs, self._moved(inputs))

    def _moved(self, inputs: int) -> float:
        """Bring the running share to this moment, then change the number of inputs under way."""
        now_s = self._clock()
        if self._inputs:
            total = self._inputs * self._gateways
            self._share_s += (now_s - self._at_s) * self._busy(total) / total
        self._at_s = now_s
        self._inputs += inputs
        return self._share_s

    def _busy(self, inputs: int) -> int:
        replicas = self._replicas
        aimed_at = math.ceil(inputs / replicas.target_ongoing_requests)
        return min(inputs, max(replicas.min, min(replicas.max, aimed_at)))


class Lap:
    """The time of some inputs that entered together."""

    def __init__(self, meter: ReplicaMeter, inputs: int, began_s: float) -> None:
        self._meter = meter
        self._inputs = inputs
        self._began_s = began_s
        self._share_s: float | None = None

    def leave(self) -> float:
        """End it; return each input's share, replica-seconds. Repeated: the same again."""
        if self._share_s is None:
            self._share_s = self._meter._moved(-self._inputs) - self._began_s
        return self._share_s
