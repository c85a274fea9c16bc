"""Divides the time of busy replicas among the inputs that they process."""

import math
import time
from collections.abc import Callable

from serving.contracts.settings import Replicas


class ReplicaMeter:
    """Divides the busy time of one model's replicas evenly among concurrent inputs.

    n concurrent inputs take 1/n each of the number of replicas that autoscaling aims at for n
    inputs, at most n. The shares of all inputs add up to the replicas' busy time. Idle time is not
    divided. With several gateways, each assumes that it has an equal part of all inputs.

    One running number holds the integral of a share over time, so that entering and leaving take
    constant time. clock: monotonic seconds.
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

    def enter(self, inputs: int) -> "MeterEntry":
        """Begin the time of this many inputs."""
        return MeterEntry(self, inputs, self._advance(inputs))

    def _advance(self, inputs: int) -> float:
        """Update the running share to now, then change the number of concurrent inputs."""
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


class MeterEntry:
    """The time of inputs that entered together."""

    def __init__(self, meter: ReplicaMeter, inputs: int, began_s: float) -> None:
        self._meter = meter
        self._inputs = inputs
        self._began_s = began_s
        self._share_s: float | None = None

    def leave(self) -> float:
        """End it; return each input's share, replica-seconds. A repeated call returns the same."""
        if self._share_s is None:
            self._share_s = self._meter._advance(-self._inputs) - self._began_s
        return self._share_s
