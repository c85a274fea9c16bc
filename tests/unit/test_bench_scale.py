"""The model of many gateways and engines: known queues, each bottleneck, wrong arguments."""

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, astuple, replace
from importlib.util import find_spec
from pathlib import Path as File
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.scale import checks, faster, times_of
from benchmarks.scale_measure import Cell, Seen, fitted
from benchmarks.scale_model import (
    Cost,
    Deployment,
    Load,
    Outcome,
    Path,
    Simulation,
    Times,
    step_s,
)
from benchmarks.scale_report import lines
from benchmarks.scale_sizes import MOVES, busy, limit, limits, more, sized, steps

# What is simulated is no code of the product: tracing it would only take time.
pytestmark = pytest.mark.no_cover

KEPT = File(__file__).parents[2] / "benchmarks" / "scale.json"
NOTHING = dict.fromkeys(("by name", "auto", "hit", "local"), 0.0)
HITS: Mapping[Path, float] = {"hit": 1.0}
MIX: Mapping[Path, float] = {"by name": 0.2, "auto": 0.25, "hit": 0.15, "local": 0.4}
TIMES = Times(
    gateway_s={"by name": 0.0012, "auto": 0.002, "hit": 0.0006, "local": 0.0012},
    encoder_s=0.002,
    proxy_s=0.0001,
    provider_s=0.0001,
    client_s=0.0002,
    ledger=Cost(0.0006, 0.0001, 0.0003, 0.00005),
    database=Cost(0.0006, 0.0001, 0.0003, 0.00005),
    flush_s=0.0005,
)
ENGINE = ((1, 0.01), (64, 0.064))
WIDE = Deployment(
    gateways=64, proxies=64, database_cores=64, gpus=64, provider_calls=10_000,
    provider_wait_s=0.1, engine_s=ENGINE,
)  # fmt: skip


def erlang_wait(servers: int, load: float, service_s: float) -> float:
    """Return the mean wait in an M/M/c queue (Erlang's C formula). load: of all servers together,
    in servers.
    """
    terms = [load**n / math.factorial(n) for n in range(servers)]
    last = load**servers / math.factorial(servers) * servers / (servers - load)
    return last / (sum(terms) + last) * service_s / (servers - load)


def simulated(
    times: Times, deployment: Deployment, mix: Mapping[Path, float], requests: int, **load: Any
) -> Outcome:
    return Simulation(times, deployment, Load(mix, requests, requests // 5, **load), seed=3).run()


@pytest.mark.parametrize(("servers", "busy_share"), [(1, 0.5), (1, 0.8), (2, 0.7), (4, 0.8)])
def test_a_queue_with_exponential_times_waits_as_erlang_says(
    servers: int, busy_share: float
) -> None:
    times = Times(NOTHING, proxy_s=0.01, spread=1.0)
    deployment = Deployment(proxies=servers)
    rate = busy_share * servers / 0.01
    found = [
        Simulation(times, deployment, Load(HITS, 5000, 1000, rate=rate), seed).run()
        for seed in range(3)
    ]
    wait_s = statistics.mean(statistics.mean(each.latencies_s) for each in found) - 0.01
    assert wait_s == pytest.approx(erlang_wait(servers, busy_share * servers, 0.01), rel=0.12)
    assert statistics.mean(each.busy["proxy"] for each in found) == pytest.approx(
        busy_share, rel=0.05
    )
    assert statistics.mean(each.requests_per_s for each in found) == pytest.approx(rate, rel=0.05)


def test_a_queue_with_equal_times_waits_half_as_long() -> None:
    times = Times(NOTHING, proxy_s=0.01, spread=0.0)
    found = [
        Simulation(times, Deployment(proxies=1), Load(HITS, 5000, 1000, rate=80.0), seed).run()
        for seed in range(3)
    ]
    wait_s = statistics.mean(statistics.mean(each.latencies_s) for each in found) - 0.01
    # Pollaczek and Khinchine: load / (2 (1 - load)) service times.
    assert wait_s == pytest.approx(0.8 / (2 * 0.2) * 0.01, rel=0.12)


def test_clients_that_wait_get_the_rate_of_littles_law() -> None:
    times = Times({**NOTHING, "by name": 0.0}, spread=0.0)
    deployment = Deployment(provider_wait_s=0.1, provider_calls=1000)
    found = simulated(times, deployment, {"by name": 1.0}, 2000, clients=20)
    assert found.requests_per_s == pytest.approx(20 / 0.1, rel=0.02)
    # The provider's wait is not the deployment's.
    assert max(found.latencies_s) == pytest.approx(0.0, abs=1e-9)


AUTO: Mapping[Path, float] = {"auto": 1.0}
BY_NAME: Mapping[Path, float] = {"by name": 1.0}
LOCAL: Mapping[Path, float] = {"local": 1.0}
NARROW: dict[str, tuple[Deployment, Times, Mapping[Path, float]]] = {
    "proxy": (replace(WIDE, proxies=1), replace(TIMES, proxy_s=0.002), MIX),
    "gateway": (replace(WIDE, gateways=1), TIMES, MIX),
    "encoder": (replace(WIDE, gateways=1), replace(TIMES, encoder_s=0.02), AUTO),
    "database": (
        replace(WIDE, tenants=1000, database_cores=1),
        replace(TIMES, database=Cost(0.0006, 0.0004, 0.0003, 0.0002)),
        HITS,
    ),
    "provider": (replace(WIDE, gateways=2, provider_calls=4), TIMES, BY_NAME),
    "engine": (replace(WIDE, gpus=1, engine_s=((1, 0.1), (64, 0.64))), TIMES, LOCAL),
    "account": (replace(WIDE, gateways=32), TIMES, BY_NAME),
    "ledger's thread": (
        replace(WIDE, gateways=1),
        replace(TIMES, gateway_s=NOTHING, database=Cost(0.001, 0.002, 0.001, 0.002)),
        HITS,
    ),
}


@pytest.mark.parametrize("part", MOVES)
def test_each_part_can_be_the_bottleneck_and_more_of_it_moves_the_limit(part: str) -> None:
    deployment, times, mix = NARROW[part]
    reached = limit(times, deployment, mix)
    assert reached.part == part
    assert busy(times, deployment, mix, reached.rate)[part] == pytest.approx(1.0, rel=1e-3)
    wider = more(deployment, part)
    if part == "account":
        assert wider is None
    else:
        assert wider is not None
        assert limits(times, wider, mix)[part] > 1.5 * reached.rate


@pytest.mark.parametrize("part", MOVES)
def test_the_simulation_saturates_where_the_arithmetic_says(part: str) -> None:
    deployment, times, mix = NARROW[part]
    reached = limit(times, deployment, mix)
    # Transactions end many requests at once.
    requests = 8000 if part == "ledger's thread" else 2500
    found = simulated(times, deployment, mix, requests, rate=1.5 * reached.rate)
    assert found.requests_per_s == pytest.approx(reached.rate, rel=0.12)
    if part in found.busy:
        assert found.busy[part] > 0.9


def test_a_second_gateway_does_not_help_a_tenant_whose_account_is_locked() -> None:
    once = Cost(0.0006)
    times = replace(
        TIMES, gateway_s=NOTHING, encoder_s=0.0, flush_s=0.02, ledger=once, database=once
    )
    one, two, apart = (
        simulated(times, replace(WIDE, gateways=n, tenants=t), BY_NAME, 2000, clients=1000)
        for n, t in ((1, 1), (2, 1), (2, 1000))
    )
    assert two.requests_per_s == pytest.approx(one.requests_per_s, rel=0.1)
    assert one.busy["account"] > 0.9
    # Most of a transaction is done before its lock: where the commit is short, it helps.
    short = replace(TIMES, gateway_s=NOTHING, encoder_s=0.0, flush_s=0.0)
    rates = [
        simulated(short, replace(WIDE, gateways=n), BY_NAME, 2000, clients=1000).requests_per_s
        for n in (1, 2)
    ]
    assert rates[1] > 1.5 * rates[0]
    # Local answers and hits charge no account.
    free = [
        simulated(times, replace(WIDE, gateways=n), HITS, 12_000, clients=4000).requests_per_s
        for n in (1, 2)
    ]
    assert free[1] > 1.7 * free[0]
    assert apart.busy["account"] < two.busy["account"]


def test_transactions_of_many_tenants_wait_for_each_other_more_than_the_arithmetic_says() -> None:
    """A transaction that waits for one account keeps those that it has locked before."""
    few, many = (replace(WIDE, tenants=tenants) for tenants in (20, 5000))
    found = {each: simulated(TIMES, each, BY_NAME, 3000, rate=6000.0) for each in (few, many)}
    said = busy(TIMES, few, BY_NAME, 6000.0)["account"]
    assert said < 0.6
    assert found[few].busy["account"] > said
    assert found[many].busy["account"] < 0.1
    middles = [statistics.median(each.latencies_s) for each in found.values()]
    assert middles[0] > 5 * middles[1]


def test_a_step_of_an_engine_is_read_from_the_measured_ones() -> None:
    curve = ((1, 0.01), (16, 0.025), (64, 0.07))
    assert step_s(curve, 1) == pytest.approx(0.01)
    assert step_s(curve, 16) == pytest.approx(0.025)
    assert step_s(curve, 40) == pytest.approx(0.0475)
    assert step_s(curve, 128) == pytest.approx(0.14)


def test_a_deployment_is_sized_so_that_no_part_is_busier_than_asked() -> None:
    start = Deployment(provider_wait_s=1.0, engine_s=ENGINE)
    for rate in (100.0, 1000.0):
        found = sized(TIMES, start, MIX, rate, 0.7)
        shares = busy(TIMES, found, MIX, rate)
        assert max(share for part, share in shares.items() if part != "account") <= 0.7
        # One of each, or close to what was asked.
        assert found.gateways == 1 or max(shares.values()) > 0.4
    assert (
        sized(TIMES, start, MIX, 1000.0, 0.7).gateways
        > sized(TIMES, start, MIX, 100.0, 0.7).gateways
    )


def test_steps_end_at_the_highest_rate_or_at_the_account() -> None:
    start = Deployment(provider_wait_s=1.0, engine_s=ENGINE)
    found = steps(TIMES, start, MIX, 100.0)
    assert [step.limit.rate > 100 for step in found] == [False] * (len(found) - 1) + [True]
    last = steps(TIMES, start, MIX, 1e6)[-1]
    assert last.limit.part == "account"


def test_the_cost_of_a_transaction_is_fitted_from_one_and_from_many_in_flight() -> None:
    once_s, paid_s, exits_s, exit_s = 0.002, 0.0001, 0.001, 0.00005
    written: dict[tuple[Any, int], dict[str, float]] = {
        ("frontier", 1): {"cpu": 2 * once_s + 3 * paid_s},
        ("frontier", 256): {"cpu": 3 * once_s / 256 + 3 * paid_s},
        ("local", 1): {"cpu": exits_s + exit_s},
        ("local", 256): {"cpu": exits_s / 256 + exit_s},
    }
    for found in written.values():
        found["database"] = found["cpu"] / 4
    ledger, database = fitted(written)
    assert astuple(ledger) == pytest.approx((once_s, paid_s, exits_s, exit_s))
    assert database.once_s == pytest.approx(once_s / 4)


def kept(**changed: Any) -> dict[str, Any]:
    times = {**asdict(TIMES), **changed}
    return {
        "machine": {"cpu": "test", "load_before": 0.1},
        "rounds": 1,
        "times": times,
        "checks": [],
    }


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        ("{", "is not JSON"),
        ("[]", "lacks service times"),
        (json.dumps({"times": {}}), "lacks service times"),
        (json.dumps(kept(proxy_s=-1)), "-1 is no time"),
        (json.dumps(kept(flush_s="1")), "'1' is no time"),
        (json.dumps(kept(gateway_s={"by name": 1})), "lacks service times"),
        (json.dumps({**kept(), "checks": None, "times": [1]}), "lacks service times"),
    ],
)
def test_figures_that_cannot_be_used_are_refused(
    content: str | None, words: str, tmp_path: File, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "kept.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    assert main(["scale", "--measured", str(path), "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert words in error["message"]
    assert error["fix"]


@pytest.mark.parametrize(
    "wrong",
    [
        ("--rounds", "0"), ("--narrow", "1.5"), ("--narrow", "-0.1"), ("--narrow", "nan"),
        ("--tenants", "0"), ("--seeds", "1"), ("--seeds", "6"), ("--requests", "99"),
        ("--times-by", "0"), ("--gpu", "t4"), ("--rounds", "many"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused_before_anything_is_measured(
    wrong: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["scale", *wrong, "--json"]) == 2
    assert wrong[0].strip("-") in capsys.readouterr().out.replace("_", "-")


def test_the_kept_figures_make_a_report_with_each_rate(
    tmp_path: File, capsys: pytest.CaptureFixture[str]
) -> None:
    plotted = tmp_path / "scale.svg"
    arguments = ["scale", "--measured", str(KEPT), "--quick", "--requests", "100"]
    assert main([*arguments, "--plot", str(plotted), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["rate"] for row in found["rates"]] == [100, 1000, 10_000]
    for row in found["rates"]:
        assert row["part"] in MOVES
        assert row["simulated"]["gateway_p99_ms"]["mean"] > 0
    assert found["rates"][0]["gateways"] <= found["rates"][2]["gateways"]
    assert plotted.read_text(encoding="utf-8").startswith("<svg")
    printed = list(lines(found))
    assert sum(line.startswith("    first limit:") for line in printed) == 3
    assert any("no A10G was ever measured" in line for line in printed)
    assert {check["gateways"] for check in found["checks"]} == {1, 2}
    found["machine"]["load_before"] = 0.5
    assert not any("OTHER WORK" in line for line in lines(found))
    found["machine"]["load_before"] = 9.0
    assert any("OTHER WORK" in line for line in lines(found))


def test_a_faster_machine_is_predicted_to_do_more() -> None:
    half = faster(TIMES, 0.5)
    assert half.ledger.once_s == pytest.approx(TIMES.ledger.once_s / 2)
    assert half.flush_s == TIMES.flush_s
    wide = replace(WIDE, gateways=1)
    assert limit(half, wide, MIX).rate > 1.5 * limit(TIMES, wide, MIX).rate


def test_a_prediction_is_stated_with_its_error() -> None:
    seen = {Cell(1, "hit", 1): Seen((400.0, 500.0, 450.0), (0.002,) * 3, (0.004,) * 3)}
    (row,) = checks(TIMES, seen, 2)
    rate = row["requests_per_s"]
    assert (rate["measured"], rate["low"], rate["high"]) == (450.0, 400.0, 500.0)
    assert rate["error"] == pytest.approx(rate["predicted"] / 450 - 1)
    # One client: what a request takes is its latency.
    assert row["p50_ms"]["predicted"] == pytest.approx(1000 / rate["predicted"], rel=0.2)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("pgserver") is None, reason="several gateways need PostgreSQL")
def test_service_times_are_measured_and_checked_with_one_and_two_gateways(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["scale", "--quick", "--requests", "100", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    times = times_of(found)
    assert all(seconds > 0 for seconds in times.gateway_s.values())
    # A transaction with paid operations has more statements than one without.
    assert times.ledger.once_s > times.ledger.once_exits_s > 0
    assert {(check["gateways"], check["clients"]) for check in found["checks"]} == {
        (1, 1), (1, 16), (2, 1), (2, 16),
    }  # fmt: skip
    assert all(check["requests_per_s"]["measured"] > 0 for check in found["checks"])
