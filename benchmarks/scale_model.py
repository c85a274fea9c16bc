"""A discrete-event model of proxies, gateways, the ledger's database, engines and a provider.

Times are in seconds, rates in 1/s. A service time is drawn around its mean (gamma distribution).
"""

import random
from collections import Counter, deque
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    import simpy

Path = Literal["by name", "auto", "hit", "local"]
PATHS: tuple[Path, ...] = get_args(Path)
"""Frontier call by name, `auto` (of a chat that is no task), exact hit, task on a local model."""

PAID: tuple[Path, ...] = ("by name", "auto")
BATCH = 256
"""Operations in one transaction of the ledger, at most (serving.ledger.worker)."""

ENGINE_BATCH = 64
"""Inputs in one step of an engine, at most (`max_num_seqs`)."""

PAID_OPERATIONS = 3
"""Operations of a paid request: its call's opening, the call's end, the exit."""

STATEMENTS = {True: 8, False: 2}
"""Statements of a transaction with paid operations, and of one without."""

ACCOUNT_STATEMENTS = 2
"""The last of them lock and write the tenants' accounts (serving.ledger.store)."""

CALLBACKS = 3
"""Parts of a paid request in the event loop: before its row, before the provider, after it."""

_PATIENCE_S = 0.02
"""How long operations for which nobody waits are kept for the next one (serving.ledger.writer)."""

_MANY = 10**6
Steps = Generator[Any, Any, None]


@dataclass(frozen=True, slots=True)
class Cost:
    """Of a transaction, seconds.

    Paid operations are openings and ends of calls, and exits of paid requests; exits are all
    others. once_s: of a transaction with paid operations; once_exits_s: of one without.
    """

    once_s: float = 0.0
    paid_s: float = 0.0
    once_exits_s: float = 0.0
    exit_s: float = 0.0

    def of(self, paid: int, exits: int) -> float:
        """Return the time of a transaction with that many operations."""
        once_s = self.once_s if paid else self.once_exits_s
        return once_s + paid * self.paid_s + exits * self.exit_s


@dataclass(frozen=True, slots=True)
class Times:
    """Mean service times of one request.

    gateway_s: processor time of the gateway's process by path, without the ledger's thread and
    without the encoder. encoder_s: of a text's vector, in threads of their own. proxy_s,
    provider_s, client_s: processor time of HAProxy, the provider, the load generator. A
    transaction takes ledger (in the gateway's process), database (in the database's), and flush_s
    without a processor. spread: standard deviation of each draw over its mean.
    """

    gateway_s: Mapping[str, float]
    encoder_s: float = 0.0
    proxy_s: float = 0.0
    provider_s: float = 0.0
    client_s: float = 0.0
    ledger: Cost = Cost()
    database: Cost = Cost()
    flush_s: float = 0.0
    spread: float = 0.5


@dataclass(frozen=True, slots=True)
class Deployment:
    """How many there are of each.

    proxies: threads of HAProxy, all nodes together. tenants: whose requests are equally many.
    provider_calls: in progress, a gateway (`max_concurrent`). provider_wait_s: of an answer, beyond
    the provider's processor time. engine_s: seconds of a step by its inputs. cores: shared by
    everything; None where each server has its own.
    """

    gateways: int = 1
    proxies: int = 2
    database_cores: int = 4
    gpus: int = 1
    tenants: int = 1
    provider_calls: int = 64
    provider_wait_s: float = 0.0
    engine_s: tuple[tuple[int, float], ...] = ((1, 0.0), (ENGINE_BATCH, 0.0))
    cores: int | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """Poisson arrivals at a rate, or clients that wait for their answers.

    mix: weights of PATHS. requests: that are counted, after `warm` that fill the queues.
    """

    mix: Mapping[Path, float]
    requests: int
    warm: int = 0
    rate: float | None = None
    clients: int | None = None


@dataclass(slots=True)
class Outcome:
    """Of the counted requests. latencies_s: without the provider's wait, by path.

    busy: share of the time that each kind of server is busy. operations: of a transaction, mean.
    """

    latencies_s: list[float] = field(default_factory=list)
    by_path_s: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0
    busy: dict[str, float] = field(default_factory=dict)
    operations: float = 0.0

    @property
    def requests_per_s(self) -> float:
        """Return the requests that ended in a second."""
        return len(self.latencies_s) / self.seconds


def step_s(curve: tuple[tuple[int, float], ...], size: int) -> float:
    """Return the duration of an engine's step, linear between the measured sizes."""
    for (low, low_s), (high, high_s) in pairwise(curve):
        if size <= high:
            return low_s + (high_s - low_s) * (size - low) / (high - low)
    return curve[-1][1] * size / curve[-1][0]


class Servers:
    """Servers with one queue; within a priority, first come, first served.

    As simpy's PriorityResource, which sorts its whole queue for each request: where a queue is
    long, this takes a tenth of the time.
    """

    def __init__(self, environment: "simpy.Environment", count: int) -> None:
        self._environment = environment
        self._free = count
        self._waiting: tuple[deque[simpy.Event], ...] = (deque(), deque())

    def taken(self, priority: int = 1) -> Steps:
        """Wait for a server. priority: 0 goes before 1."""
        if self._free:
            self._free -= 1
            return
        turn = self._environment.event()
        self._waiting[priority].append(turn)
        yield turn

    def release(self) -> None:
        """Give a server back, to the next one that waits."""
        for queue in self._waiting:
            if queue:
                queue.popleft().succeed()
                return
        self._free += 1


class Station:
    """Servers that are kept for a time. cores: what a server needs besides, where shared."""

    def __init__(
        self, environment: "simpy.Environment", servers: int, cores: Servers | None = None
    ) -> None:
        self.busy_s = 0.0
        self._environment = environment
        self._servers = Servers(environment, servers)
        self._cores = cores

    def hold(self, seconds: float, priority: int = 1) -> Steps:
        """Wait for a server and keep it for the time. priority: 0 goes before 1."""
        if seconds <= 0.0:
            return
        yield from self._servers.taken(priority)
        if self._cores is not None:
            yield from self._cores.taken()
        yield self._environment.timeout(seconds)
        if self._cores is not None:
            self._cores.release()
        self._servers.release()
        self.busy_s += seconds


class _Queue:
    """The queue of one worker that takes many items at once."""

    def __init__(self, environment: "simpy.Environment") -> None:
        self._environment = environment
        self._items: deque[Any] = deque()
        self._wakes: list[simpy.Event] = []

    def put(self, *items: Any) -> None:
        self._items += items
        if self._items and self._wakes:
            self._wakes.pop().succeed()

    def take(self, most: int) -> Generator[Any, Any, list[Any]]:
        """Wait until there is something, and return at most so many items."""
        while not self._items:
            wake = self._environment.event()
            self._wakes.append(wake)
            yield wake
        return [self._items.popleft() for _ in range(min(most, len(self._items)))]


@dataclass(frozen=True, slots=True, eq=False)
class _Operation:
    """Of a gateway's ledger. done: None where nobody waits."""

    tenant: int
    is_paid: bool
    done: "simpy.Event | None" = None


class _Gateway:
    """One gateway's process, its encoder, its ledger's queue and its slots at the provider."""

    def __init__(
        self, environment: "simpy.Environment", deployment: Deployment, cores: Servers | None
    ) -> None:
        self.process = Station(environment, 1, cores)
        self.encoder = Station(environment, 1, cores)
        self.slots = Servers(environment, deployment.provider_calls)
        self.ledger = _Queue(environment)
        self.patient: list[_Operation] = []
        self.connections = 0


class Simulation:
    """One run."""

    def __init__(self, times: Times, deployment: Deployment, load: Load, seed: int) -> None:
        import simpy

        self._env = env = simpy.Environment()
        self._times, self._deployment, self._load = times, deployment, load
        self._rng = random.Random(seed)  # noqa: S311  # not for secrets
        cores = None if deployment.cores is None else Servers(env, deployment.cores)
        # Where processors are shared, every connection of the database has its own process.
        backends = deployment.database_cores if cores is None else _MANY
        self._proxy = Station(env, deployment.proxies, cores)
        self._database = Station(env, backends, cores)
        self._provider = Station(env, _MANY if cores is None else 1, cores)
        self._client_s = 0.0 if cores is None else times.client_s
        self._client = Station(env, 1, cores)
        self._gateways = [_Gateway(env, deployment, cores) for _ in range(deployment.gateways)]
        self._locks = [Servers(env, 1) for _ in range(deployment.tenants)]
        self._engine = _Queue(env)
        self._engine_busy_s = self._locked_s = self._slots_s = 0.0
        self._transactions: Counter[str] = Counter()
        self._outcome = Outcome()
        self._ended = 0
        self._begun_s = 0.0
        self._over = env.event()
        self._paths = list(load.mix)
        self._weights = list(load.mix.values())

    def run(self) -> Outcome:
        """Run it to its end."""
        env, deployment, found = self._env, self._deployment, self._outcome
        for gateway in self._gateways:
            env.process(self._ledger(gateway))
        for _ in range(deployment.gpus):
            env.process(self._gpu())
        if self._load.clients is None:
            env.process(self._arrivals())
        else:
            for _ in range(self._load.clients):
                env.process(self._client_of_load())
        env.run(until=self._over)
        found.seconds = env.now - self._begun_s
        slots = deployment.gateways * deployment.provider_calls
        busy = {
            "proxy": self._proxy.busy_s / deployment.proxies,
            "gateway": _mean(gateway.process.busy_s for gateway in self._gateways),
            "encoder": _mean(gateway.encoder.busy_s for gateway in self._gateways),
            "database": self._database.busy_s / deployment.database_cores,
            "account": self._locked_s / deployment.tenants,
            "provider": self._slots_s / slots,
            "engine": self._engine_busy_s / deployment.gpus,
        }
        found.busy = {name: seconds / env.now for name, seconds in busy.items()}
        found.operations = self._transactions["operations"] / max(1, self._transactions["all"])
        return found

    def _arrivals(self) -> Steps:
        assert self._load.rate is not None
        while True:
            yield self._env.timeout(self._rng.expovariate(self._load.rate))
            self._env.process(self._request())

    def _client_of_load(self) -> Steps:
        while True:
            yield self._env.process(self._request())

    def _draw(self, mean: float) -> float:
        if self._times.spread <= 0.0 or mean <= 0.0:
            return mean
        shape = 1 / self._times.spread**2
        return self._rng.gammavariate(shape, mean / shape)

    def _request(self) -> Steps:
        env, times = self._env, self._times
        (path,) = self._rng.choices(self._paths, self._weights)
        tenant = self._rng.randrange(self._deployment.tenants)
        began_s, waited_s = env.now, 0.0
        yield from self._client.hold(self._draw(self._client_s))
        yield from self._proxy.hold(self._draw(times.proxy_s))
        # As HAProxy: the gateway with the fewest requests, among equals by chance.
        gateway = min(self._gateways, key=lambda each: (each.connections, self._rng.random()))
        gateway.connections += 1
        if path in PAID:
            yield from self._paid(gateway, path, tenant)
            waited_s = self._deployment.provider_wait_s
        else:
            part_s = times.gateway_s[path] / 2
            yield from gateway.process.hold(self._draw(part_s))
            if path == "local":
                answered = env.event()
                self._engine.put(answered)
                yield answered
                yield from gateway.process.hold(self._draw(part_s))
            yield from self._written(gateway, tenant, is_paid=False)
            if path == "hit":
                yield from gateway.process.hold(self._draw(part_s))
        gateway.connections -= 1
        self._end(path, env.now - began_s - waited_s)

    def _paid(self, gateway: _Gateway, path: Path, tenant: int) -> Steps:
        env, times = self._env, self._times
        part_s = times.gateway_s[path] / CALLBACKS
        yield from gateway.process.hold(self._draw(part_s))
        if path == "auto":
            yield from gateway.encoder.hold(self._draw(times.encoder_s))
        yield from self._written(gateway, tenant, is_paid=True)
        yield from gateway.slots.taken()
        slot_s = env.now
        yield from gateway.process.hold(self._draw(part_s))
        yield from self._provider.hold(self._draw(times.provider_s))
        yield env.timeout(self._deployment.provider_wait_s)
        gateway.slots.release()
        self._slots_s += env.now - slot_s
        yield from gateway.process.hold(self._draw(part_s))
        # The call's end and the exit go with the next call's opening: nobody waits for them.
        if not gateway.patient:
            env.process(self._patience(gateway))
        gateway.patient += [_Operation(tenant, is_paid=True)] * (PAID_OPERATIONS - 1)

    def _patience(self, gateway: _Gateway) -> Steps:
        yield self._env.timeout(_PATIENCE_S)
        gateway.ledger.put(*gateway.patient)
        gateway.patient.clear()

    def _written(self, gateway: _Gateway, tenant: int, *, is_paid: bool) -> Steps:
        done = self._env.event()
        gateway.ledger.put(*gateway.patient, _Operation(tenant, is_paid, done))
        gateway.patient.clear()
        yield done

    def _end(self, path: str, latency_s: float) -> None:
        self._ended += 1
        warm = self._load.warm
        if self._ended == warm:
            self._begun_s = self._env.now
        elif self._ended > warm:
            self._outcome.latencies_s.append(latency_s)
            self._outcome.by_path_s.setdefault(path, []).append(latency_s)
        if self._ended == warm + self._load.requests:
            self._over.succeed()

    def _ledger(self, gateway: _Gateway) -> Steps:
        """Commit pending writes in one transaction."""
        while True:
            batch: list[_Operation] = yield from gateway.ledger.take(BATCH)
            self._transactions["all"] += 1
            self._transactions["operations"] += len(batch)
            yield from self._transaction(gateway, batch)
            for each in batch:
                if each.done is not None:
                    each.done.succeed()

    def _transaction(self, gateway: _Gateway, batch: list[_Operation]) -> Steps:
        """Run a transaction's statements; the tenants' accounts are locked for the last of them.

        A budget that may not suffice, for which accounts are locked earlier, is not simulated.
        """
        paid = sum(each.is_paid for each in batch)
        counts = paid, len(batch) - paid
        tenants = sorted({each.tenant for each in batch if each.is_paid})
        since_s: list[float] = []
        statements = STATEMENTS[paid > 0]
        ours_s = self._times.ledger.of(*counts) / statements
        database_s = self._times.database.of(*counts) / statements
        for number in range(statements):
            if number == statements - ACCOUNT_STATEMENTS:
                # All processes lock accounts in the same order; a transaction that waits for one
                # keeps those before it.
                for tenant in tenants:
                    yield from self._locks[tenant].taken()
                    since_s.append(self._env.now)
            # The interpreter's lock goes from the event loop to the ledger's thread after each
            # callback, however many callbacks wait.
            yield from gateway.process.hold(self._draw(ours_s), priority=0)
            yield from self._database.hold(self._draw(database_s))
        yield self._env.timeout(self._draw(self._times.flush_s))
        self._locked_s += sum(self._env.now - since for since in since_s)
        for tenant in tenants:
            self._locks[tenant].release()

    def _gpu(self) -> Steps:
        while True:
            batch = yield from self._engine.take(ENGINE_BATCH)
            seconds = step_s(self._deployment.engine_s, len(batch))
            yield self._env.timeout(seconds)
            # Of a full step: one that is not full takes nearly as long, and leaves room.
            full_s = step_s(self._deployment.engine_s, ENGINE_BATCH)
            self._engine_busy_s += len(batch) / ENGINE_BATCH * full_s
            for answered in batch:
                answered.succeed()


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
