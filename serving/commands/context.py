"""`narrowgate context`: measure context pruning, or fit its model."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from serving.commands.options import add_settings_options, settings_from
from serving.commands.progress import step

if TYPE_CHECKING:
    from serving.context.evaluation import Evaluation
    from serving.context.pairs import Pair
    from serving.context.ranking import EncoderName, Model, Ranker

HELP = "measure how much of a context pruning removes and which answers stay, or fit its model"
_KEEPS = (0.5, 0.4, 0.3, 0.2)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    evaluate = actions.add_parser("evaluate", help="tokens removed, answers kept, time")
    evaluate.add_argument(
        "file", type=Path, nargs="?", metavar="FILE",
        help='your own pairs, JSON Lines: {"question", "answers", "documents": [{"title", "text", '
        '"gold"}]}; the shipped held-out half if absent',
    )  # fmt: skip
    evaluate.add_argument("--data", type=Path, metavar="FILE", help="further pairs, as FILE")
    evaluate.add_argument("--model", type=Path, metavar="FILE", help="a model of `fit`")
    evaluate.add_argument("--limit", type=_count, metavar="N", help="pairs of each set; all")
    fit = actions.add_parser("fit", help="fit the model and certify its threshold")
    fit.add_argument(
        "file", type=Path, nargs="?", metavar="FILE",
        help="your own pairs, on which the threshold is then certified; the shipped half if absent",
    )  # fmt: skip
    fit.add_argument(
        "--out", type=Path, default=Path("context-model.json"), metavar="FILE",
        help="the model (context-model.json); name it in the setting context.model",
    )  # fmt: skip
    for action in (evaluate, fit):
        action.add_argument(
            "--encoder", choices=["tokens", "sentences"], default="tokens",
            help="tokens: vectors by look-up; sentences: the encoder reads every sentence, which "
            "takes up to 0.9 ms a token",
        )  # fmt: skip
        add_settings_options(action)
        action.add_argument(
            "--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document"
        )


def run(args: argparse.Namespace) -> int:
    """Fit or evaluate."""
    return _fit(args) if args.action == "fit" else _evaluate(args)


def _count(text: str) -> int:
    from serving.host.numbers import whole_number

    number = whole_number(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1 pair is needed")
    return number


def _ranker(args: argparse.Namespace) -> "Ranker":
    from serving.context.ranking import Ranker
    from serving.embedding.token_vectors import TokenVectors

    if args.encoder == "tokens":
        return Ranker(TokenVectors())
    from serving.embedding.embedder import build_embedder

    return Ranker(TokenVectors(), build_embedder(settings_from(args).state).embed_all)


def _fit(args: argparse.Namespace) -> int:
    from serving.context.fitting import example, fit, is_usable, refuse_too_few
    from serving.context.pairs import read_pairs, shipped_pairs
    from serving.context.ranking import models_text
    from serving.contracts.errors import InvalidArgument
    from serving.host.safe_write import replace_file, replaceable_file

    out = replaceable_file(args.out, "--out")
    own: list[Pair] = []
    if args.file:
        own = [pair for pair in read_pairs(args.file) if is_usable(pair)]
        refuse_too_few(len(own))
    with step("fitting the context model"):
        ranker = _ranker(args)
        shipped = [example(pair, ranker) for pair in shipped_pairs("fit")]
        mine = [example(pair, ranker) for pair in own]
        model = fit([*shipped, *mine], mine or shipped, args.encoder, ranker)
    try:
        replace_file(out, models_text([model]).encode(), mode=0o644)
    except OSError as error:
        raise InvalidArgument(
            f"{str(args.out)!r} cannot be written: {error.strerror}", field="--out"
        ) from error
    if args.json:
        print(json.dumps({"model": str(args.out), **model.model_dump(mode="json")}))
        return 0
    print(f"wrote {args.out}: {_certified(model)}")
    for name, weight in zip(model.features, model.weights, strict=True):
        print(f"  {name:<22} {weight:+.3f}")
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from serving.context.evaluation import evaluate
    from serving.context.pruning import Pruner
    from serving.context.ranking import load_models

    encoder: EncoderName = args.encoder
    model = load_models(args.model).of(encoder)
    sets = _sets(args)
    with step("pruning contexts"):
        pruner = Pruner(_ranker(args), model)
        found = [evaluate(name, pairs, pruner, _KEEPS) for name, pairs in sets.items()]
    if args.json:
        document = {"model": model.model_dump(mode="json"), "sets": [asdict(one) for one in found]}
        print(json.dumps(document))
        return 0
    print(f"threshold {model.threshold:.4f}: {_certified(model)}")
    for one in found:
        _print(one)
    return 0


def _sets(args: argparse.Namespace) -> "dict[str, tuple[Pair, ...]]":
    from serving.context.pairs import read_pairs, shipped_pairs
    from serving.contracts.errors import InvalidArgument

    named = [file for file in (args.file, args.data) if file is not None]
    sets = {} if args.file else {"shipped, held out": shipped_pairs("held_out")}
    sets |= {file.name: read_pairs(file) for file in named}
    limited = {name: pairs[: args.limit] for name, pairs in sets.items()}
    for name, pairs in limited.items():
        if not any(pair.is_reachable for pair in pairs):
            raise InvalidArgument(
                f"no context of {name!r} holds its answer word for word",
                field="FILE",
                fix="set gold: true on a document that holds one of the answers",
            )
    return limited


def _certified(model: "Model") -> str:
    return (
        f"kept {model.recall:.4f} of {model.pairs} answers, at least {model.recall_lower:.4f} with "
        f"{model.confidence:.0%} confidence (target {model.target_recall})"
    )


def _print(found: "Evaluation") -> None:
    least, median, most = found.tokens
    print(
        f"\n{found.name}: {found.pairs} pairs of {least} to {most} tokens (median {median}), "
        f"{found.unreachable} unreachable left out"
    )
    print("  keep        removed   answers kept              p50 ms   p99 ms")
    for row in found.rows:
        name = "threshold" if row.keep is None else f"{row.keep:.0%}"
        low, high = row.interval
        print(
            f"  {name:<10} {row.removed:8.1%}   {row.answers_kept:.4f} [{low:.4f}, {high:.4f}]"
            f"   {row.p50_ms:6.1f}   {row.p99_ms:6.1f}"
        )
    print(f"  4,000 tokens by the threshold: p50 {found.long_p50_ms:.1f} ms")
