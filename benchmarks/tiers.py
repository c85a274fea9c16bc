"""`python -m benchmarks tiers`: is the best tier of each topic found, and what does it cost?"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from serving.commands.progress import step

HELP = "simulate tiers that are earned per cluster: convergence, loss, payback"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--seeds", type=int, default=20, help="runs (20)")
    parser.add_argument("--requests", type=int, default=5_000, help="of each run (5000)")
    parser.add_argument("--slip", type=float, default=0.05, help="share of random verdicts (0.05)")
    parser.add_argument(
        "--place", type=float, default=0.1, help="share of ties given to the first answer (0.1)"
    )
    parser.add_argument(
        "--data", type=Path, metavar="FILE",
        help="measure clusters instead, on JSON Lines with prompt, subject, cheap and dear "
        "(whether each of two models is right)",
    )  # fmt: skip
    parser.add_argument("--state", type=Path, default=Path(".narrowgate"), help="has the encoder")


def run(args: argparse.Namespace) -> int:
    """Run it and print one JSON document. Exit status 0; figures are reported, not judged."""
    from benchmarks.machine import machine
    from benchmarks.tiers_simulation import TARGET, TOPICS, Judge, Simulation
    from serving.evidence.statistics.intervals import clopper_pearson

    if args.data is not None:
        from benchmarks.tiers_clusters import measured

        with step("computing vectors and splits"):
            sent = measured(args.data, args.state, splits=40)
        found = {name: asdict(one) for name, one in sent.items()}
        print(json.dumps({"machine": machine(), "clusters": found}, indent=2))
        return 0
    simulation = Simulation(requests=args.requests, judge=Judge(args.slip, args.place))
    with step(f"{args.seeds} runs of {args.requests} requests"):
        results = [simulation.run(seed) for seed in range(args.seeds)]
    best = clopper_pearson(sum(r.is_best for r in results), len(results))
    worst = [
        max((r.losses[name] / n for name, n in r.served.items()), default=0.0) for r in results
    ]
    within = clopper_pearson(sum(loss <= TARGET for loss in worst), len(results))
    paid = [r.paid_back_at for r in results if r.paid_back_at is not None]
    report = {
        "machine": machine(),
        "seeds": len(results),
        "requests": args.requests,
        "topics": {topic.name: topic.best for topic in TOPICS},
        "best_assignment": {"share": best.mean, "interval": [best.low, best.high]},
        "every_topic_within_target": {"share": within.mean, "interval": [within.low, within.high]},
        "net_loss_of_cheaper_answers": _spread([r.loss for r in results]),
        "worst_topic": _spread(worst),
        "explored_requests": _spread([float(r.explored) for r in results]),
        "explored_usd": _spread([r.explored_usd for r in results]),
        "audited_usd": _spread([r.audited_usd for r in results]),
        "reference_usd": _spread([r.reference_usd for r in results]),
        "saving_net": _spread([r.saving for r in results]),
        "paid_back": len(paid),
        "paid_back_at_request": _spread([float(n) for n in paid]),
    }
    print(json.dumps(report, indent=2))
    return 0


def _spread(values: list[float]) -> dict[str, float]:
    """Return the median and the 2.5th and 97.5th percentiles over the runs."""
    if not values:
        return {}
    low, middle, high = np.percentile(values, (2.5, 50, 97.5))
    return {"p2.5": round(low, 4), "p50": round(middle, 4), "p97.5": round(high, 4)}
