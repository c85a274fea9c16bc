"""`narrowgate gate`: test a candidate against its 16-bit baseline and sign the results."""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from serving.host.interruption import run_until_stopped
from serving.host.numbers import signed_integer, signed_number, us_dollars

if TYPE_CHECKING:
    from evals.findings import Findings, LabelRun
    from evals.gate import Request
    from evals.label_orders import LabelOrders
    from evals.population import OwnInputs
    from evals.suite import Suite
    from serving.contracts.attestation import GatePredicate
    from serving.contracts.settings import ModelSettings, Settings
    from serving.contracts.task_spec import TaskSpec
    from serving.host.progress import StepObserver

HELP = "test a model against its 16-bit baseline, task by task, and sign the verdicts"
_EXITS = {"pass": 0, "fail": 1, "inconclusive": 3}

# A key has some 120 bytes.
_MOST_KEY_BYTES = 2**16


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "--baseline", type=Path, required=True, metavar="DIR", help="the 16-bit checkpoint"
    )
    parser.add_argument(
        "--candidate", type=Path, required=True, metavar="DIR", help="the checkpoint to be served"
    )
    parser.add_argument(
        "--suite", action="append", required=True, metavar="DIR|NAME",
        help="a suite, a folder of suites, builtin, or builtin-extended, which has more inputs; "
        "may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--key", required=True, metavar="FILE", help="private key (narrowgate keygen); - for stdin"
    )
    parser.add_argument(
        "--task", action="append", default=[], metavar="NAME", help="only this task; repeatable"
    )
    parser.add_argument(
        "--margin", action="append", default=[], metavar="TASK=LOSS",
        help="largest acceptable loss of a task, in its metric (0.02); INT4 has no default",
    )  # fmt: skip
    parser.add_argument(
        "--examples", action="append", default=[], metavar="[TASK=]FILE",
        help="your own labelled inputs (JSONL, the fields of the task's suite), on which the error "
        "bound is certified instead of on a half of the suite; repeatable, one file a task",
    )  # fmt: skip
    parser.add_argument(
        "--reference", metavar="PROVIDER/MODEL",
        help="its answers count as right in place of the labels, which suites and --examples may "
        "lack; needs --batch",
    )  # fmt: skip
    parser.add_argument(
        "--batch", metavar="URL",
        help="gateway whose batches ask the --reference, at the provider's batch price",
    )  # fmt: skip
    parser.add_argument(
        "--batch-key-env", default="NARROWGATE_KEY", metavar="NAME",
        help="environment variable with the gateway's API key (NARROWGATE_KEY)",
    )  # fmt: skip
    parser.add_argument(
        "--max-cost-usd", metavar="USD", help="labels that could cost more in all are not ordered"
    )
    parser.add_argument(
        "--dry-run", action="store_true",
        help="check arguments and inputs and, with --reference, show what labels may cost; order "
        "and evaluate nothing",
    )  # fmt: skip
    parser.add_argument(
        "--skip-unlabelled", action="store_true",
        help="leave out inputs that the --reference does not label",
    )  # fmt: skip
    parser.add_argument(
        "--general", action="append", default=[], metavar="LM_EVAL_TASK",
        help="also test a public task of lm-eval, for damage outside the served tasks; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--general-margin",
        type=signed_number,
        default=0.02,
        metavar="LOSS",
        help="largest acceptable loss of each --general task (0.02)",
    )
    parser.add_argument(
        "--include-path",
        type=Path,
        metavar="DIR",
        help="folder with lm-eval task files for --general",
    )
    parser.add_argument(
        "--min-speed", type=signed_number, default=0.8, metavar="RATIO",
        help="lowest acceptable throughput as a ratio to the baseline's "
        "(0.8, which tolerates noise); 0 accepts any",
    )  # fmt: skip
    parser.add_argument(
        "--limit", type=signed_integer, metavar="N", help="only the first N examples of each suite"
    )
    parser.add_argument(
        "--stop-early", action="store_true",
        help="stop measuring a model on a task as soon as it is clear that it cannot pass",
    )  # fmt: skip
    parser.add_argument("--seed", type=signed_integer, default=0, help="seed of the resampling (0)")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for attestation and report (the candidate's)",
    )
    parser.add_argument(
        "--attest-baseline", type=Path, metavar="DIR",
        help="also judge the 16-bit baseline, by its own metric, and write its attestation there",
    )  # fmt: skip
    parser.add_argument(
        "--no-texts", action="store_true", help="omit the texts of examples from the report"
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings of the engine (YAML)")
    parser.add_argument(
        "--model",
        metavar="ID",
        help="id of a model in the settings, whose engine is used (the first)",
    )
    parser.add_argument("--tasks-dir", type=Path, metavar="DIR", help="folder with task files")


def run(args: argparse.Namespace) -> int:
    """Run the gate, write attestation and report, print the verdicts."""
    consequence = "nothing was signed"
    if args.reference is not None:
        consequence += (
            "; labels that were ordered stay ordered, and the same command takes them over"
        )
    return run_until_stopped(lambda: _run(args), consequence)


def _run(args: argparse.Namespace) -> int:
    # transformers reads this at import. Its bars would mix with this program's output.
    os.environ.setdefault("TQDM_DISABLE", "1")
    from evals.findings import overall_verdict
    from evals.output import refuse_unwritable_results, write_baseline, write_results
    from serving.artifacts.checkpoint import Checkpoint, refuse_no_checkpoint
    from serving.artifacts.signing_key import load_signer, read_key
    from serving.contracts.errors import EngineFailure, EvaluationFailed
    from serving.host.progress import Bar, JsonLines
    from serving.local.deployment import refuse_missing_kernel

    # Outputs and key are checked first: a run takes minutes to hours.
    _refuse_bad_numbers(args)
    out = args.out or args.candidate
    for folder in (out, *([args.attest_baseline] if args.attest_baseline else [])):
        refuse_unwritable_results(folder)
    _refuse_one_folder(args, out)
    pem = sys.stdin.buffer.read(_MOST_KEY_BYTES) if args.key == "-" else read_key(Path(args.key))
    signer = load_signer(pem, "standard input" if args.key == "-" else repr(args.key))
    for name in ("baseline", "candidate"):
        refuse_no_checkpoint(getattr(args, name), field=name)
    settings, suites, own_inputs = _tested_on(args)
    for folder in (args.baseline, args.candidate):
        refuse_missing_kernel(_model(settings, args.model), Checkpoint(str(folder), None))
    # The engine and lm-eval take seconds to import; a bad suite or file is refused before.
    from evals.gate import refuse_unfit_request, run_gate
    from evals.harness import refuse_unknown_general

    request = _request(args, settings, suites, own_inputs)
    refuse_unfit_request(request)
    refuse_unknown_general(request.general)
    with JsonLines() if args.json else Bar() as progress:
        if args.dry_run:
            return _dry_run(args, request, settings, progress)
        labels: LabelRun | None = None
        if args.reference is not None:
            request, labels = _labelled(args, request, settings, progress)
        try:
            findings = replace(run_gate(request, progress), labels=labels)
        except EngineFailure as error:
            # Exit status 1 would mean that the candidate failed.
            raise EvaluationFailed(f"no verdict: {error.message}", fix=error.fix) from error
        progress.step("signing and writing the report", 1, 1)
        digest = write_results(findings, signer, out, texts=not args.no_texts)
        baseline: str | None = None
        if args.attest_baseline is not None:
            name = args.baseline.resolve().name
            baseline = write_baseline(findings, signer, args.attest_baseline, name)
    verdict = overall_verdict(findings)
    if args.json:
        document = {
            "verdict": verdict.value,
            "attestation": digest,
            "baseline_attestation": baseline,
            "folder": str(out),
            "populations": _populations(findings),
            "labels": _label_document(findings),
            "steps_s": {name: round(seconds, 2) for name, seconds in findings.steps_s.items()},
            "predicate": json.loads(findings.predicate.model_dump_json()),
        }
        print(json.dumps(document))
    else:
        _print(findings, digest, out)
        if findings.baseline is not None:
            _print_baseline(findings.baseline, baseline, args.attest_baseline)
    return _EXITS[verdict.value]


def _refuse_bad_numbers(args: argparse.Namespace) -> None:
    from serving.host.numbers import MOST_SEED, refuse_outside

    refuse_outside("--min-speed", args.min_speed, least=0.0, most=1000.0)
    refuse_outside("--general-margin", args.general_margin, least=0.0, most=1.0)
    refuse_outside("--limit", args.limit, least=1)
    refuse_outside("--seed", args.seed, least=0, most=MOST_SEED)
    _refuse_bad_reference(args)


def _refuse_one_folder(args: argparse.Namespace, out: Path) -> None:
    from serving.contracts.errors import InvalidArgument

    if args.attest_baseline is not None and args.attest_baseline.resolve() == out.resolve():
        raise InvalidArgument(
            f"--attest-baseline and the candidate's attestation name one folder, {str(out)!r}",
            field="attest_baseline",
            fix="name the baseline's folder",
        )


def _refuse_bad_reference(args: argparse.Namespace) -> None:
    from pydantic import TypeAdapter, ValidationError

    from serving.contracts.errors import InvalidArgument
    from serving.contracts.frontier_settings import FrontierModelName

    if (args.reference is None) != (args.batch is None):
        given, other = ("--batch", "--reference") if args.reference is None else (
            "--reference", "--batch")  # fmt: skip
        raise InvalidArgument(
            f"{given} needs {other}", field=other,
            fix="name the model with --reference and the gateway with --batch",
        )  # fmt: skip
    if args.reference is None:
        if args.skip_unlabelled or args.max_cost_usd is not None:
            option = "--skip-unlabelled" if args.skip_unlabelled else "--max-cost-usd"
            raise InvalidArgument(
                f"{option} is about labels of a --reference", field=option,
                fix="name a --reference, or leave it out",
            )  # fmt: skip
        return
    try:
        name: str = TypeAdapter(FrontierModelName).validate_python(args.reference)
    except ValidationError:
        name = ""
    if not name or name.startswith("task/"):
        raise InvalidArgument(
            f"--reference is {args.reference!r}", field="--reference",
            fix="send a provider and its model, such as anthropic/claude-sonnet-5-5",
        )  # fmt: skip
    if args.max_cost_usd is not None:
        us_dollars("--max-cost-usd", args.max_cost_usd)


def _labelled(
    args: argparse.Namespace, request: "Request", settings: "Settings", progress: "StepObserver"
) -> "tuple[Request, LabelRun]":
    """Return the request with the reference's labels, and what they cost. Blocking, up to a day."""
    from evals.labelling import label_inputs

    with _orders(args, settings, progress) as orders:
        found = label_inputs(request, args.reference, orders, skip_unlabelled=args.skip_unlabelled)
    own = _compared(found.request.own_inputs, found.request.suites, settings, args.seed)
    return replace(found.request, own_inputs=own), found.run


@contextmanager
def _orders(
    args: argparse.Namespace, settings: "Settings", progress: "StepObserver"
) -> "Iterator[LabelOrders]":
    from evals.label_orders import AnswerFolder, LabelOrders
    from serving.host.batch_client import BatchClient

    limit = None if args.max_cost_usd is None else us_dollars("--max-cost-usd", args.max_cost_usd)
    folder = AnswerFolder(settings.state / "labels" / args.reference.replace("/", "_"))
    with BatchClient(args.batch, args.batch_key_env, field="--batch") as client:
        yield LabelOrders(args.reference, folder, client, args.batch, progress, limit)


def _dry_run(
    args: argparse.Namespace, request: "Request", settings: "Settings", progress: "StepObserver"
) -> int:
    """Print what the labels may cost; order and evaluate nothing."""
    inputs = sum(len(suite.examples) for suite in request.suites)
    inputs += sum(len(own.suite.examples) for own in request.own_inputs.values())
    document: dict[str, object] = {"dry_run": True, "inputs": inputs, "labels": None}
    text = f"{inputs:,} inputs can be tested; nothing was run"
    if args.reference is not None:
        from evals.labelling import label_estimate

        with _orders(args, settings, progress) as orders:
            found = label_estimate(request, args.reference, orders)
        costs = {"max_usd": found.max_usd, "batch_usd": found.batch_usd}
        document["labels"] = {
            "reference": args.reference, "asked": found.asked, "ordered": found.ordered,
            "reused": found.reused,
            **{name: None if usd is None else f"{usd:f}" for name, usd in costs.items()},
        }  # fmt: skip
        at_most = {name: "unknown" if usd is None else f"${usd:.4f}" for name, usd in costs.items()}
        text += (
            f"\nlabels by {args.reference}: {found.asked:,} would be asked for, {found.ordered:,} "
            f"are ordered, {found.reused:,} are there; at most {at_most['max_usd']}, in a "
            f"provider's batch {at_most['batch_usd']}"
        )
    print(json.dumps(document) if args.json else text)
    return 0


def _label_document(findings: "Findings") -> "dict[str, object] | None":
    run = findings.labels
    if run is None:
        return None
    return {
        "reference": run.reference, "labels": run.labels, "reused": run.reused,
        "paid_usd": None if run.paid_usd is None else f"{run.paid_usd:f}",
        "batches": list(run.batches),
    }  # fmt: skip


def _tested_on(
    args: argparse.Namespace,
) -> "tuple[Settings, list[Suite], dict[str, OwnInputs]]":
    from serving.contracts.settings_sources import load_settings
    from serving.tasks.catalog import load_specs

    settings = load_settings(args.config, {"tasks_dir": args.tasks_dir})
    suites = _suites(args, dict(load_specs(settings.tasks_dir)))
    return settings, suites, _own_inputs(args, suites, settings)


def _request(
    args: argparse.Namespace,
    settings: "Settings",
    suites: "list[Suite]",
    own_inputs: "dict[str, OwnInputs]",
) -> "Request":
    from evals.gate import Request
    from evals.harness import General

    return Request(
        baseline=args.baseline,
        candidate=args.candidate,
        suites=suites,
        settings=_model(settings, args.model),
        margins=dict(_margin(text) for text in args.margin),
        general=General(tuple(args.general), args.include_path, args.general_margin),
        required_speed=args.min_speed,
        stop_early=args.stop_early,
        seed=args.seed,
        own_inputs=own_inputs,
        attest_baseline=args.attest_baseline is not None,
    )


def _own_inputs(
    args: argparse.Namespace, suites: "list[Suite]", settings: "Settings"
) -> "dict[str, OwnInputs]":
    if not args.examples:
        return {}
    from evals.population import file_of_each_task, read_inputs

    by_name = {suite.name: suite for suite in suites}
    files = file_of_each_task(args.examples, list(by_name))
    is_labelled_later = args.reference is not None
    # Every file is read before the encoder is loaded.
    found = {
        name: read_inputs(path, by_name[name], may_lack_labels=is_labelled_later)
        for name, path in files.items()
    }
    return found if is_labelled_later else _compared(found, suites, settings, args.seed)


def _compared(
    found: "Mapping[str, OwnInputs]", suites: "Sequence[Suite]", settings: "Settings", seed: int
) -> "dict[str, OwnInputs]":
    """Return own inputs with how they differ from the suites; loads the encoder."""
    if not found:
        return {}
    from evals.population_comparison import compared

    by_name = {suite.name: suite for suite in suites}
    return {name: compared(own, by_name[name], settings.state, seed) for name, own in found.items()}


def _suites(args: argparse.Namespace, specs: "dict[str, TaskSpec]") -> "list[Suite]":
    from evals.suite import named_suites
    from evals.suite_check import refuse_unfit
    from serving.contracts.errors import InvalidSuite

    found: dict[str, Suite] = {}
    # Only the requested suites are read: a built-in suite may not fit a user's task with the same
    # name.
    wanted = {name: spec for name, spec in specs.items() if not args.task or name in args.task}
    for name in args.suite:
        for suite in named_suites(name, wanted, may_lack_labels=args.reference is not None):
            if suite.name in found:
                raise InvalidSuite(
                    f"two suites test task {suite.name!r}", field="suite", fix="name one of them"
                )
            found[suite.name] = suite
    for name in args.task:
        if name not in found:
            raise InvalidSuite(
                f"no suite tests task {name!r}",
                field="task",
                fix="use one of: " + ", ".join(sorted(found)),
            )
    chosen = [suite for name, suite in found.items() if not args.task or name in args.task]
    for suite in chosen:
        refuse_unfit(suite)
    return [suite.first(args.limit) for suite in chosen] if args.limit else chosen


def _model(settings: "Settings", model_id: str | None) -> "ModelSettings":
    from serving.contracts.errors import UnknownModel
    from serving.settings_linter import lint_engines

    lint_engines(settings)
    for model in settings.models:
        if model_id in (None, model.id):
            return model
    raise UnknownModel(
        f"the settings have no model {model_id!r}",
        field="model",
        fix="use one of: " + ", ".join(model.id for model in settings.models),
    )


def _margin(text: str) -> tuple[str, float]:
    from serving.contracts.errors import InvalidSuite

    name, _, loss = text.partition("=")
    try:
        value = signed_number(loss)
    except argparse.ArgumentTypeError:
        value = -1.0
    if not name or not 0.0 <= value <= 1.0:
        raise InvalidSuite(
            f"--margin {text!r} is not TASK=LOSS with a loss between 0 and 1",
            field="margin",
            fix="for example --margin sentiment=0.03",
        )
    return name, value


def _populations(findings: "Findings") -> "dict[str, dict[str, object]]":
    return {
        name: {"sentence": found.population.sentence, "warnings": found.population.warnings}
        for name, found in findings.predicate.tasks.items()
        if found.population is not None
    }


def _print(findings: "Findings", digest: str, out: Path) -> None:
    from evals.report.markdown import render_markdown

    print(render_markdown(findings))
    print(f"\nattestation {digest}\nreport      {out / 'report.html'}")


def _print_baseline(found: "GatePredicate", digest: str | None, out: Path) -> None:
    print(f"\n16-bit baseline, by its own metric\nattestation {digest} in {out}")
    for name, result in found.tasks.items():
        print(f"{name}: {result.verdict.value}: {'; '.join(result.reasons)}")
