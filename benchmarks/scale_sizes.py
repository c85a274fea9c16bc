"""How busy each part of a deployment is at a rate, which is busy first, and how many are needed.

By arithmetic, without queues; benchmarks.scale_model has the queues.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from benchmarks.scale_model import (
    ACCOUNT_STATEMENTS,
    BATCH,
    CALLBACKS,
    ENGINE_BATCH,
    PAID,
    PAID_OPERATIONS,
    STATEMENTS,
    Deployment,
    Path,
    Times,
    step_s,
)

MOVES: Mapping[str, tuple[str, str]] = {
    "proxy": ("proxies", "more threads of HAProxy, or a proxy on more nodes"),
    "gateway": ("gateways", "more gateway replicas"),
    "encoder": ("gateways", "more gateway replicas; instructions that the router knows"),
    "ledger's thread": ("gateways", "more gateway replicas"),
    "database": ("database_cores", "more cores for PostgreSQL"),
    "provider": ("provider_calls", "a larger `max_concurrent` of the provider; more replicas"),
    "engine": ("gpus", "more engine replicas"),
    "account": (
        "",
        "fewer paid calls a tenant (hits, local answers), or tenants on gateways of their own: "
        "transactions that charge one tenant follow one another",
    ),
}
"""By part: the field of Deployment of which more helps, and what that is."""

MOST_CALLS = 256
"""Calls of a gateway in progress, at most: `gateway.max_concurrent_inputs` as shipped."""

_HIGHEST = 1e7
_HALVINGS = 60


@dataclass(frozen=True, slots=True)
class Limit:
    """The part that is busy all the time at the lowest rate, and that rate."""

    part: str
    rate: float


@dataclass(frozen=True, slots=True)
class Step:
    """A deployment and its limit."""

    deployment: Deployment
    limit: Limit


def busy(
    times: Times, deployment: Deployment, mix: Mapping[Path, float], rate: float
) -> dict[str, float]:
    """Return how busy each part is at a rate; above 1: it cannot keep up.

    "account": the lock on one tenant's account, which a transaction with paid operations holds.
    """
    total = sum(mix.values())
    share = {path: weight / total for path, weight in mix.items()}
    paid_share = sum(share.get(path, 0.0) for path in PAID)
    here = rate / deployment.gateways
    paid, exits = PAID_OPERATIONS * here * paid_share, here * (1 - paid_share)
    ledger, database = times.ledger, times.database
    once_s = [ledger.once_s, database.once_s, times.flush_s]
    if not paid_share:
        once_s[:2] = ledger.once_exits_s, database.once_exits_s
    ledger_rows = paid * ledger.paid_s + exits * ledger.exit_s
    database_rows = paid * database.paid_s + exits * database.exit_s
    # A thread that is often idle commits each awaited operation alone; a busy one commits again
    # and again, until transactions are full.
    fullest = (paid + exits) / BATCH
    left = max(0.0, 1 - ledger_rows - database_rows)
    own_s = sum(share[path] * times.gateway_s[path] for path in share)
    # Each statement waits until the event loop's callback ends.
    callback_s = own_s / CALLBACKS * (1 + times.spread**2) / 2
    waits_s = STATEMENTS[paid_share > 0] * callback_s * min(1.0, here * own_s)
    whole_s = sum(once_s) + waits_s
    unbounded = left / whole_s if whole_s > 0 else here
    commits = max(fullest, min(here, unbounded))
    # Only the last statements of a transaction, and its commit, hold the lock.
    held = ACCOUNT_STATEMENTS / STATEMENTS[True]
    locked = _locked(
        deployment.tenants,
        here * paid_share,
        held * (once_s[0] + once_s[1]) + times.flush_s,
        held * (ledger.paid_s + database.paid_s),
    )
    # A busy database makes transactions wait and grow, down to the work of full ones.
    cores = deployment.database_cores / deployment.gateways
    needed = (fullest * once_s[1] + database_rows) / cores
    spare = (commits - fullest) * once_s[1] / cores
    return {
        "proxy": rate * times.proxy_s / deployment.proxies,
        "gateway": here * own_s + commits * once_s[0] + ledger_rows,
        "encoder": here * share.get("auto", 0.0) * times.encoder_s,
        "ledger's thread": fullest * sum(once_s) + ledger_rows + database_rows,
        "database": needed + (1 - needed) * min(1.0, spare) if needed < 1 else needed,
        "account": deployment.gateways * locked,
        "provider": here * paid_share * deployment.provider_wait_s / deployment.provider_calls,
        "engine": rate
        * share.get("local", 0.0)
        * step_s(deployment.engine_s, ENGINE_BATCH)
        / ENGINE_BATCH
        / deployment.gpus,
    }


def _locked(tenants: int, requests: float, once_s: float, row_s: float) -> float:
    """Return the share of the time that one gateway locks the account of one of the tenants.

    requests: paid ones, a second. Transactions grow while they wait for a lock, and a larger one
    locks more accounts: the size that locks least is taken.
    """
    sizes = [1 << power for power in range(int(math.log2(BATCH)) + 1)]
    shares: list[float] = []
    for size in sizes:
        # A request's opening is in one transaction, its end in another.
        locks: float = 1 - (1 - 1 / tenants) ** max(1.0, 2 * size / PAID_OPERATIONS)
        commits = requests * PAID_OPERATIONS / size
        shares.append(commits * locks * (once_s + size * row_s))
    return min(shares)


def limits(times: Times, deployment: Deployment, mix: Mapping[Path, float]) -> dict[str, float]:
    """Return the rate at which each part is busy all the time; infinite where none is so high."""
    found = {}
    for part in MOVES:
        low, high = 0.0, _HIGHEST
        if busy(times, deployment, mix, high)[part] < 1:
            found[part] = float("inf")
            continue
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            if busy(times, deployment, mix, middle)[part] < 1:
                low = middle
            else:
                high = middle
        found[part] = low
    return found


def limit(times: Times, deployment: Deployment, mix: Mapping[Path, float]) -> Limit:
    """Return the part that is busy first as the rate grows."""
    found = limits(times, deployment, mix)
    part = min(found, key=lambda each: found[each])
    return Limit(part, found[part])


def more(deployment: Deployment, part: str) -> Deployment | None:
    """Return a deployment with twice as much of a part; None where there cannot be more."""
    name, _ = MOVES[part]
    if part == "provider" and deployment.provider_calls >= MOST_CALLS:
        name = "gateways"
    if not name:
        return None
    return replace(deployment, **{name: 2 * getattr(deployment, name)})


def steps(
    times: Times, deployment: Deployment, mix: Mapping[Path, float], highest: float
) -> list[Step]:
    """Return what limits a deployment, then what limits it with twice as much of that, and so on.

    Ends above the highest rate, or where nothing moves the limit.
    """
    found = []
    now: Deployment | None = deployment
    while now is not None:
        reached = limit(times, now, mix)
        found.append(Step(now, reached))
        now = more(now, reached.part) if reached.rate <= highest else None
    return found


def sized(
    times: Times, deployment: Deployment, mix: Mapping[Path, float], rate: float, most_busy: float
) -> Deployment:
    """Return the deployment with as many of each as keep every part below most_busy at the rate.

    A part of which there cannot be more stays as busy as it is.
    """
    now = deployment
    while True:
        found = busy(times, now, mix, rate)
        parts = [part for part in found if found[part] > most_busy and more(now, part) is not None]
        if not parts:
            return now
        part = max(parts, key=lambda each: found[each])
        name, _ = MOVES[part]
        if part == "provider":
            calls = min(MOST_CALLS, 2 * now.provider_calls)
            if calls > now.provider_calls:
                now = replace(now, provider_calls=calls)
                continue
            name = "gateways"
        count = getattr(now, name)
        now = replace(now, **{name: max(count + 1, int(count * found[part] / most_busy))})
