"""`python -m benchmarks replay`: what a replay of requests costs with each lever. A simulation."""

import argparse
import json
import pickle
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.commands.options import add_settings_options, settings_from
from serving.host.numbers import whole_number
from serving.host.terminal import terminal_progress

if TYPE_CHECKING:
    from benchmarks.replay_arms import Arm
    from benchmarks.replay_setup import Lever, Replay

HELP = "simulate what a mix of requests costs with each lever, against two references"
SIMULATION = (
    "A simulation: the providers' answers follow the table of assumptions, and prices are real. "
    "No real provider was asked, and no local model ran."
)
_REFERENCES = ("frontier", "standard")
_SETS = ("together", "cascades", "order", "less", "alone", "all")
_PAIRED = {"contexts": "whole contexts", "briefs": "answers of the usual length"}
UNEARNED = "all less what is earned"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_settings_options(parser)
    parser.add_argument("--requests", type=whole_number, default=2000, help="requests (2000)")
    parser.add_argument("--seed", type=whole_number, default=1, help="of the mix (1)")
    parser.add_argument("--reference", choices=_REFERENCES, default="frontier", help="tier")
    parser.add_argument(
        "--arms", choices=_SETS, default="all",
        help="which arms to run: all levers together, with and without those that are earned; with "
        "cascades, which are off as shipped; in their order, one more each; all less one; each "
        "alone; or all of these",
    )  # fmt: skip
    parser.add_argument(
        "--ranges", action="store_true",
        help="all levers together with one group of assumptions at each end of its range at a time",
    )  # fmt: skip
    parser.add_argument(
        "--end", choices=("low", "central", "high"), default="central",
        help="end of the ranges of assumptions: low saves least",
    )  # fmt: skip
    parser.add_argument(
        "--earlier-days", type=float, default=28.0, metavar="DAYS",
        help="of the same traffic before the replay, in which tiers and hits are earned (28)",
    )  # fmt: skip
    parser.add_argument(
        "--keep", type=Path, metavar="FILE",
        help="add the arms to those in this file, so that several runs make one table; it is read "
        "as Python's pickle: only use a file of your own",
    )  # fmt: skip
    parser.add_argument(
        "--most", type=whole_number, default=100, metavar="N", help="arms to run now; with --keep"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also write the savings as SVG")


def run(args: argparse.Namespace) -> int:
    """Simulate and report. Exit status 0; figures are reported, not judged."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="replay-") as folder:
        replay = replay_of(args, Path(folder))
        if args.ranges:
            return _ranges(replay, args)
        arms: dict[str, Arm] = {}
        if args.keep is not None and args.keep.exists():
            arms = pickle.loads(args.keep.read_bytes())  # noqa: S301  # the user's own file
        for name, arm in run_arms(replay, chosen(args.arms), dict(arms), args.most):
            arms[name] = arm
            if args.keep is not None:
                args.keep.write_bytes(pickle.dumps(arms))
        found = document(replay, arms, args)
    if args.plot is not None:
        args.plot.write_text(plot(found), encoding="utf-8")
    if args.json:
        print(json.dumps(found))
        return 0
    for line in lines(found):
        print(line)
    return 0


def _ranges(replay: "Replay", args: argparse.Namespace) -> int:
    from benchmarks import replay_ranges

    found = replay_ranges.ranged(replay, args.requests, args.seed, args.keep, args.most)
    if args.json:
        print(json.dumps({"note": SIMULATION, "ranges": replay_ranges.document(found)}))
        return 0
    for line in (SIMULATION, *replay_ranges.lines(found)):
        print(line)
    return 0


def replay_of(args: argparse.Namespace, folder: Path) -> "Replay":
    """Return what the arms share."""
    from benchmarks.replay_assumptions import Assumptions
    from benchmarks.replay_mix import build_mix
    from benchmarks.replay_setup import Replay
    from serving.ledger.pricing.book import PriceBook

    settings = settings_from(args)
    values = Assumptions().at(args.end)
    return Replay(
        build_mix(args.requests, values, args.seed), values, settings,
        PriceBook.load(settings.ledger.prices_file),
        settings.frontier.tiers[args.reference][0], folder, args.earlier_days, args.seed,
    )  # fmt: skip


def chosen(arms: str) -> "dict[str, tuple[Lever, ...]]":
    """Return the arms of a set with their levers."""
    from benchmarks.replay_figures import unearned_levers
    from benchmarks.replay_setup import LEVERS

    found: dict[str, tuple[Lever, ...]] = {}
    if arms in ("together", "all"):
        found |= {"all": LEVERS, UNEARNED: unearned_levers(LEVERS)}
    if arms in ("cascades", "all"):
        found |= {"all": LEVERS, "all and cascades": (*LEVERS, "cascade")}
    if arms in ("order", "all"):
        found |= {f"up to {LEVERS[n - 1]}": LEVERS[:n] for n in range(1, len(LEVERS))}
    if arms in ("less", "all"):
        found |= {"all": LEVERS, **{f"all less {lever}": without(lever) for lever in LEVERS}}
    if arms in ("alone", "all"):
        found |= {f"only {lever}": (lever,) for lever in LEVERS}
    return found


def without(lever: "Lever") -> "tuple[Lever, ...]":
    """Return all levers less one. Hits by meaning go with the exact cache, which holds them."""
    from benchmarks.replay_setup import LEVERS

    gone = (lever, "similar_cache") if lever == "exact_cache" else (lever,)
    return tuple(one for one in LEVERS if one not in gone)


def run_arms(
    replay: "Replay",
    arms: "Mapping[str, tuple[Lever, ...]]",
    known: "Mapping[str, Arm]",
    most: int,
) -> "Iterator[tuple[str, Arm]]":
    """Yield the direct arm and those that are not known yet, `most` of them, once each has run.

    Arms with the same levers are run once.
    """
    from benchmarks.replay_arms import direct, run_arm

    yield "direct", direct(replay)
    done = {arm.levers: arm for arm in known.values()}
    wanted = {name: levers for name, levers in arms.items() if name not in known}
    with terminal_progress() as progress:
        task = progress.add_task("replaying", total=len(wanted) * len(replay.requests))
        for name, levers in wanted.items():
            if levers not in done:
                if not most:
                    return
                most -= 1
                done[levers] = run_arm(replay, name, levers, lambda: progress.advance(task))
            yield name, replace(done[levers], name=name)


def document(
    replay: "Replay", arms: "Mapping[str, Arm]", args: argparse.Namespace
) -> dict[str, Any]:
    """Return the whole report as one document."""
    from benchmarks.machine import machine
    from benchmarks.replay_assumptions import Assumptions
    from benchmarks.replay_figures import by_removal, effect, figures, month

    direct = arms["direct"]
    has_month = "all" in arms and UNEARNED in arms
    hour_usd = replay.values["replica_hour_usd"]
    return {
        "note": SIMULATION,
        "machine": machine(),
        "requests": len(replay.requests),
        "conversations": len({one.conversation for one in replay.requests}),
        "repeats": sum(one.is_repeat for one in replay.requests),
        "seed": args.seed,
        "end": args.end,
        "reference": replay.reference,
        "direct_usd": sum(one.usd for one in direct.results),
        "direct_right": sum(one.is_right for one in direct.results) / len(direct.results),
        "direct": asdict(figures(direct, direct, hour_usd)),
        "arms": [
            asdict(figures(direct, arm, hour_usd)) for name, arm in arms.items() if name != "direct"
        ],
        "by_removal": by_removal(arms.values()),
        "effects": [
            asdict(effect(direct, arms["all"], arm))
            for name, arm in arms.items()
            if "all" in arms and name not in ("direct", "all")
        ],
        "month": asdict(month(direct, arms[UNEARNED], arms["all"], replay.earlier_days))
        if has_month
        else None,
        "before": _before(arms.values()),
        "assumed": {name: asdict(value) for name, value in Assumptions().rows()},
    }


def _before(arms: "Iterable[Arm]") -> list[dict[str, Any]]:
    """Return what earlier traffic had earned, without its rows."""
    found: dict[str, dict[str, Any]] = {}
    for arm in arms:
        for one in arm.earned:
            found[one.what] = {
                "what": one.what,
                "requests": one.requests, "hits": one.hits, "hits_usd": one.hits_usd,
                "reference_usd": one.reference_usd, "answers_usd": one.answers_usd,
                "explored_usd": one.explored_usd, "audited_usd": one.audited_usd,
                "settled_at": one.settled_at, "paid_back_at": one.paid_back_at,
                "late_usd": one.late_usd, "net_usd": one.net_usd, "tiers": one.tiers,
                "states": one.states,
            }  # fmt: skip
    return list(found.values())


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Return the report for people."""
    yield found["note"]
    yield "machine: " + ", ".join(f"{key} {value}" for key, value in found["machine"].items())
    yield (
        f"{found['requests']} requests in {found['conversations']} conversations, "
        f"{found['repeats']} of them repeats, seed {found['seed']}; assumptions: {found['end']}; "
        f"everything to {found['reference']} costs ${found['direct_usd']:.4f} with "
        f"{found['direct_right']:.1%} right answers, p50 {found['direct']['p50_s']:.1f} s, "
        f"p95 {found['direct']['p95_s']:.1f} s"
    )
    yield (
        f"{'arm':<26}{'USD':>9}{'saved':>8} {'95 %':<16}{'with idle':>10}{'behind':>8}{'loss':>8} "
        f"{'95 %':<16}{'p50 s':>6}{'p95 s':>6}  routes"
    )
    for arm in found["arms"]:
        routes = ", ".join(f"{n} {name}" for name, n in arm["routes"].items())
        yield (
            f"{arm['name']:<26}{arm['usd']:>9.4f}{arm['saved']:>8.1%} "
            f"{_range(arm['saved_bounds']):<16}{arm['saved_with_idle']:>10.1%}{arm['behind']:>8.1%}"
            f"{arm['loss']:>8.1%} {_range(arm['loss_bounds']):<16}"
            f"{arm['p50_s']:>6.1f}{arm['p95_s']:>6.1f}  {routes}"
        )
    for one in found["effects"]:
        yield (
            f"all levers against {one['name']}: {one['saved']:+.1%} saved "
            f"({_range(one['saved_bounds'])}), {one['loss']:+.1%} loss "
            f"({_range(one['loss_bounds'])}); of the same requests and coins"
        )
    if found["by_removal"]:
        parts = ", ".join(f"{name} {share:.1%}" for name, share in found["by_removal"].items())
        yield f"of all together: {parts}"
    yield from _earning(found)
    for name, value in found["assumed"].items():
        yield (
            f"assumed {name}: {value['low']:g} / {value['central']:g} / {value['high']:g}, "
            f"{value['what']}; {value['source']}"
        )


def _earning(found: Mapping[str, Any]) -> Iterator[str]:
    for one in found["before"]:
        if one["what"] in _PAIRED:
            yield _paired(one)
            continue
        if one["what"] != "tiers":
            yield (
                f"before: {one['what']}: {one['hits']} pairs were judged for "
                f"${one['hits_usd']:.4f} until each claim was held or given up"
            )
            continue
        tiers = ", ".join(f"{share:.0%} {tier}" for tier, share in sorted(one["tiers"].items()))
        yield (
            f"before: {one['requests']} open-ended requests, ${one['reference_usd']:.2f} at the "
            f"reference, answered for ${one['answers_usd']:.2f}; explored for "
            f"${one['explored_usd']:.2f}, audited for ${one['audited_usd']:.2f}; paid back after "
            f"{one['paid_back_at']}, the last change after {one['settled_at']}; then {tiers}"
        )
    if (month := found["month"]) is not None:
        yield (
            f"first month, earning included: {month['saved']:.1%} saved "
            f"({_range(month['saved_bounds'])}); {month['unearned']:.1%} before anything is "
            f"earned, {month['earned']:.1%} after {month['earning_days']:g} days, in which what is "
            f"earned saved {month['realised']:.0%} of what it then saves, net"
        )


def _paired(one: Mapping[str, Any]) -> str:
    states = ", ".join(
        f"{share:.0%} {model} {state}" for model, (state, share) in sorted(one["states"].items())
    )
    return (
        f"before: {one['what']}: {one['requests']} requests, ${one['reference_usd']:.2f} with "
        f"{_PAIRED[one['what']]}, answered for ${one['answers_usd']:.2f}; {one['hits']} compared: "
        f"${one['explored_usd']:.2f} until earned, ${one['audited_usd']:.2f} watching; net "
        f"${one['net_usd']:.2f}; paid back after {one['paid_back_at']}, the last change after "
        f"{one['settled_at']}; then {states}"
    )


def _range(ends: tuple[float, float]) -> str:
    return f"{ends[0]:.1%} to {ends[1]:.1%}"


def plot(found: Mapping[str, Any]) -> str:
    """Return the share that each arm saves, with its interval, as SVG."""
    from serving.reporting.figures import name_rows, report_figure, svg_element, write_beside

    arms = found["arms"]
    with report_figure(7.0, 0.9 + 0.27 * len(arms)) as figure:
        axes = figure.subplots()
        for place, arm in enumerate(arms):
            axes.hlines(place, *arm["saved_bounds"], color="#0969da", linewidth=4.0, alpha=0.45)
            axes.plot(arm["saved"], place, "o", color="#0969da", markersize=5)
            write_beside(axes, place, f"{arm['saved']:.1%}")
        axes.axvline(0.0, color="#59636f", linewidth=0.8)
        axes.set_xlabel(f"share saved against everything to {found['reference']} (simulation)")
        name_rows(axes, [arm["name"].replace("_", " ") for arm in arms])
        return svg_element(figure, "Saving by arm", {})
