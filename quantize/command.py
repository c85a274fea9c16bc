"""`narrowgate quantize`: make an artifact, plan one, or compare several."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.host.interruption import run_until_stopped
from serving.host.numbers import signed_integer

if TYPE_CHECKING:
    from quantize.run import Artifact, Request

HELP = "turn a 16-bit checkpoint into an INT8 or INT4 artifact; plan one; compare several"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "model", nargs="?", metavar="MODEL",
        help="16-bit checkpoint: a folder, a hub id with --revision, or "
        "bundled:smollm2-135m-instruct",
    )  # fmt: skip
    parser.add_argument("--revision", metavar="COMMIT", help="commit of a hub id, 40 hex digits")
    parser.add_argument("--recipe", metavar="NAME|FILE", help="a shipped recipe or a YAML file")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the artifact's folder")
    parser.add_argument("--list-recipes", action="store_true", help="list the shipped recipes")
    parser.add_argument(
        "--dry-run", action="store_true",
        help="check and print the plan, quantize nothing; a bundled MODEL is written to --state "
        "the first time",
    )  # fmt: skip
    parser.add_argument(
        "--calibration", type=Path, metavar="FILE", help="JSONL instead of the built-in texts"
    )
    parser.add_argument(
        "--samples", type=signed_integer, metavar="N",
        help="calibration samples instead of the recipe's number: fewer are faster and less exact",
    )  # fmt: skip
    parser.add_argument(
        "--held-out", type=Path, action="append", default=[], metavar="PATH",
        help="evaluation suite (JSONL file or folder) whose examples must not be calibrated on",
    )  # fmt: skip
    parser.add_argument(
        "--target", metavar="NAME",
        help="hardware that will serve it: cpu, a10g, l4, a100, h100, ... or smNN (this machine)",
    )  # fmt: skip
    parser.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default="auto", help="where to quantize (auto)"
    )
    parser.add_argument(
        "--seed", type=signed_integer, default=0, help="seed of the choice of calibration texts (0)"
    )
    parser.add_argument(
        "--python", type=Path, metavar="FILE",
        help="interpreter with narrowgate[quantize]; an environment is made if none is given",
    )  # fmt: skip
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings (YAML)")
    parser.add_argument(
        "--state", type=Path, metavar="DIR", help="folder for the bundled model (.narrowgate)"
    )
    parser.add_argument("--tasks-dir", type=Path, metavar="DIR", help="folder with task files")
    compare = parser.add_argument_group("comparison")
    compare.add_argument(
        "--compare", type=Path, nargs="+", metavar="DIR",
        help="measure these artifacts beside their baseline (MODEL, or the model that their "
        "provenance names)",
    )  # fmt: skip
    compare.add_argument(
        "--text", type=Path, metavar="FILE",
        help='JSONL of {"text": ...} for perplexity and divergence (built-in prose)',
    )  # fmt: skip
    compare.add_argument(
        "--inputs", type=Path, metavar="FILE",
        help='JSONL of {"task", "text"[, "answer"]}: also count the labels that changed',
    )  # fmt: skip
    compare.add_argument(
        "--rounds", type=signed_integer, default=3, help="of throughput, interleaved (3)"
    )


def run(args: argparse.Namespace) -> int:
    """Run the command and print its result."""
    return run_until_stopped(lambda: _run(args), "nothing was published")


def _run(args: argparse.Namespace) -> int:
    if args.list_recipes:
        return _list(args)
    if args.compare:
        from quantize.compare.command import run as run_comparison

        return run_comparison(args)
    return _quantize(args)


def _list(args: argparse.Namespace) -> int:
    from quantize.recipe import built_in_recipes

    recipes = built_in_recipes()
    if args.json:
        print(json.dumps([recipe.model_dump(mode="json") for recipe in recipes.values()]))
        return 0
    for name, recipe in recipes.items():
        print(f"{name}\n    {recipe.description}")
    return 0


def _quantize(args: argparse.Namespace) -> int:
    from quantize.plan_report import as_document, print_plan
    from quantize.run import carry_out, prepare
    from serving.host.progress import Bar, JsonLines

    with JsonLines() if args.json else Bar() as progress:
        progress.step("checking the model, the recipe and the calibration data")
        prepared = prepare(_request(args))
        if not args.dry_run:
            artifact = carry_out(prepared, progress)
    if args.dry_run:
        if args.json:
            print(json.dumps(as_document(prepared)))
        else:
            print_plan(prepared)
        return 0
    _print_artifact(artifact, as_json=args.json)
    return 0


def _request(args: argparse.Namespace) -> "Request":
    from quantize.recipe import load_recipe, with_samples
    from quantize.run import Request
    from quantize.source import parse_source
    from serving.contracts.errors import InvalidRecipe, OutputInUse, UnsuitableModel
    from serving.contracts.settings_sources import load_settings
    from serving.host.numbers import MOST_SEED, refuse_outside
    from serving.host.safe_write import refuse_used_output
    from serving.tasks.catalog import load_specs

    refuse_outside("--seed", args.seed, least=0, most=MOST_SEED)
    refuse_outside("--samples", args.samples, least=1)
    if args.out is not None:
        refuse_used_output(args.out)
    if args.model is None:
        raise UnsuitableModel(
            "MODEL is missing", field="model", fix="name a folder or a hub id; see --help"
        )
    if args.recipe is None:
        raise InvalidRecipe(
            "--recipe is missing", field="recipe", fix="see narrowgate quantize --list-recipes"
        )
    if args.out is None and not args.dry_run:
        raise OutputInUse("--out is missing", field="out", fix="name a folder to write")
    settings = load_settings(args.config, {"state": args.state, "tasks_dir": args.tasks_dir})
    recipe = with_samples(load_recipe(args.recipe), args.samples)
    return Request(
        source=parse_source(args.model, args.revision, settings.state),
        recipe=recipe,
        # Without --out, a plan is checked against the disk of the current folder.
        # Links are followed: the artifact takes the place of a folder, never of a link.
        out=args.out.resolve() if args.out else Path.cwd() / "artifact.dry-run",
        specs=load_specs(settings.tasks_dir),
        calibration=args.calibration,
        held_out=tuple(args.held_out),
        target=args.target,
        device=args.device,
        seed=args.seed,
        python=args.python,
    )


def _print_artifact(artifact: "Artifact", *, as_json: bool) -> None:
    facts: dict[str, Any] = artifact.provenance
    if as_json:
        print(
            json.dumps(
                {
                    "artifact": str(artifact.folder),
                    "digest": f"sha256:{artifact.manifest.root}",
                    "provenance": facts,
                }
            )
        )
        return
    mib = 2**20
    print(
        f"{artifact.folder}\n"
        f"  digest     sha256:{artifact.manifest.root}\n"
        f"  weights    {facts['size_before_bytes'] / mib:.1f} MiB -> "
        f"{facts['size_after_bytes'] / mib:.1f} MiB\n"
        f"  took       {facts['duration_s']:.0f} s, peak memory "
        f"{facts['peak_memory_bytes'] / mib:.0f} MiB"
    )
