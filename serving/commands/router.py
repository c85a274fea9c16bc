"""`narrowgate router`: train the router on more texts, or measure it."""

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.commands.options import add_settings_options, settings_from
from serving.commands.progress import step
from serving.host.numbers import refuse_outside, signed_integer

if TYPE_CHECKING:
    from serving.routing.evaluation.cost import CostReport
    from serving.routing.evaluation.detection import DetectionReport
    from serving.routing.evaluation.intervals import Share
    from serving.routing.evaluation.run import RouterReport

HELP = "train the router on your own requests, or measure it"
_DEFAULT_LIMIT = 1000


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    train = actions.add_parser("train", help="fit the router's model")
    train.add_argument(
        "--logs", type=Path, nargs="+", default=[], metavar="FILE",
        help='your own labelled requests, JSON Lines: {"body" or "text", "task", "complexity"}',
    )  # fmt: skip
    train.add_argument(
        "--out", type=Path, default=Path("router-model"), metavar="DIR",
        help="folder for the model (router-model); name it in the setting routing.model",
    )  # fmt: skip
    train.add_argument(
        "--evidence", type=Path, metavar="DIR",
        help="routing samples that decide whether complexity scores are trusted; never trained on",
    )  # fmt: skip
    evaluate = actions.add_parser("evaluate", help="measure the router")
    evaluate.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help="folder or file with samples, in addition to the shipped ones",
    )
    evaluate.add_argument(
        "--limit", type=signed_integer, default=_DEFAULT_LIMIT, metavar="N",
        help=f"rows of each file ({_DEFAULT_LIMIT})",
    )  # fmt: skip
    for action in (train, evaluate):
        add_settings_options(action)
        action.add_argument(
            "--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document"
        )


def run(args: argparse.Namespace) -> int:
    """Train or evaluate."""
    return _train(args) if args.action == "train" else _evaluate(args)


def _train(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from serving.embedding.embedder import build_embedder
    from serving.host.safe_write import refuse_unwritable_output
    from serving.routing.corpus import shipped_corpus
    from serving.routing.evaluation.run import Subject, earns_trust
    from serving.routing.evaluation.samples import read_samples
    from serving.routing.heads import save_model
    from serving.routing.training import train
    from serving.tasks.catalog import load_specs

    settings = settings_from(args)
    refuse_unwritable_output(args.out)
    specs = load_specs(settings.tasks_dir)
    corpus = shipped_corpus(args.logs)
    samples = read_samples(args.evidence, 1 << 30).routing if args.evidence else ()
    with step("training the router"):
        embedder = build_embedder(settings.state)
        model = train(corpus, embedder, specs)
        costs = Subject(model, specs, embedder, settings.routing).costs(samples)
    if costs:
        evidence = "; ".join(f"{name}: {_gain(report)}" for name, report in costs.items())
        head = replace(model.complexity, trusted=earns_trust(costs), evidence=evidence)
        model = replace(model, complexity=head)
    save_model(model, args.out)
    document = {
        "model": str(args.out),
        "prompts": len(corpus.prompts),
        "texts_digest": corpus.digest,
        "tasks": sorted(set(model.task.classes) & set(specs)),
        "complexity_trusted": model.complexity.trusted,
        "evidence": model.complexity.evidence,
    }
    if args.json:
        print(json.dumps(document))
        return 0
    print(f"wrote {args.out}: trained on {len(corpus.prompts)} prompts")
    print(f"  tasks: {', '.join(sorted(set(model.task.classes) & set(specs)))}")
    print(f"  complexity scores {_trust(model.complexity.trusted)} ({model.complexity.evidence})")
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    from serving.embedding.embedder import build_embedder
    from serving.routing.corpus import shipped_corpus
    from serving.routing.evaluation.held_out import HALVES
    from serving.routing.evaluation.run import Subject
    from serving.routing.evaluation.samples import read_samples
    from serving.routing.heads import load_model
    from serving.tasks.catalog import load_specs

    refuse_outside("--limit", args.limit, least=1)
    settings = settings_from(args)
    samples = read_samples(args.data, args.limit) if args.data else None
    with step("measuring the router"):
        subject: Subject = Subject(
            load_model(settings.routing.model),
            load_specs(settings.tasks_dir),
            build_embedder(settings.state),
            settings.routing,
        )
        report = subject.evaluate(shipped_corpus(), samples, HALVES)
    if args.json:
        print(json.dumps(_finite(report)))
    else:
        _print(report)
    return 0


def _finite(report: "RouterReport") -> Any:
    """Return the report as JSON, which has no NaN: a share of nothing is null."""
    from dataclasses import asdict

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [clean(item) for item in value]
        return None if isinstance(value, float) and math.isnan(value) else value

    return clean(asdict(report)) | {"scores_earn_trust": report.scores_earn_trust}


def _print(report: "RouterReport") -> None:
    print("task detection, held-out part of the shipped texts")
    _print_detection(report.held_out)
    for part, phrasings in report.phrasings.items():
        print(f"\ntask detection, held-out phrasings, part {part}")
        _print_detection(phrasings)
    if report.samples is not None:
        print("\ntask detection, development samples")
        _print_detection(report.samples)
    for name, cost in report.costs.items():
        _print_cost(name, cost)
    if report.costs:
        print(f"\ncomplexity scores are {_trust(report.trusted)} by this model")
        if report.trusted != report.scores_earn_trust:
            print("  THESE SAMPLES CONTRADICT IT: retrain with --evidence")
    for category, tiers in report.categories.items():
        counts = "  ".join(f"{tier} {count}" for tier, count in tiers.items())
        print(f"  {category:<14} {counts}")


def _print_detection(report: "DetectionReport") -> None:
    for name, figures in {**report.tasks, "all tasks": report.overall}.items():
        precision, recall = _share(figures.precision), _share(figures.recall)
        print(f"  {name:<14} precision {precision}   recall {recall}")
    for source, share in report.wrongly_narrow.items():
        if source == "all" or share.value > 0:
            print(f"  classified as a task, {source}: {_share(share)}")


def _print_cost(name: str, report: "CostReport") -> None:
    print(
        f"\n{name}: {report.prompts} prompts, always cheap {report.always_cheap:.3f}, "
        f"always expensive {report.always_expensive:.3f}"
    )
    for row in report.rates:
        low, high = row.router_interval
        worth = "" if row.beats_random else "   NO BETTER THAN RANDOM"
        print(
            f"  {row.rate:.0%} expensive: router {row.router:.3f} [{low:.3f}, {high:.3f}]  random "
            f"{row.random:.3f}  oracle {row.oracle:.3f}{worth}"
        )
    worth = "" if report.beats_random else "   NO BETTER THAN RANDOM"
    print(f"  over all rates: {_gain(report)}{worth}")


def _gain(report: "CostReport") -> str:
    low, high = report.average_interval
    return f"router less random {report.average_gain:+.4f} [{low:+.4f}, {high:+.4f}]"


def _share(share: "Share") -> str:
    return f"{share.value:.3f} [{share.low:.3f}, {share.high:.3f}] of {share.of}"


def _trust(trusted: bool) -> str:
    return "trusted" if trusted else "not trusted, tiers come from a simple rule"
