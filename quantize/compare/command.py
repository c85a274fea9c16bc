"""`narrowgate quantize --compare`: measure artifacts beside the model that they were made from."""

import argparse
import json
import tempfile
from pathlib import Path

from quantize.compare.measure import Materials, Subject, measure
from quantize.compare.report import as_document, print_table
from quantize.compare.workload import inputs_from, passages_from, refuse_unfit_files
from quantize.hardware import this_machine
from quantize.provenance import FILE
from quantize.source import parse_source
from serving.artifacts.checkpoint import refuse_no_checkpoint
from serving.artifacts.manifest import file_manifest
from serving.contracts.errors import UnsuitableModel
from serving.contracts.plain_file import read_plain_text
from serving.contracts.settings import BUNDLED_MODEL
from serving.contracts.settings_sources import load_settings
from serving.host.numbers import refuse_outside
from serving.host.progress import Bar, JsonLines
from serving.tasks.catalog import load_specs


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    refuse_outside("--rounds", args.rounds, least=1)
    settings = load_settings(args.config, {"state": args.state, "tasks_dir": args.tasks_dir})
    specs = load_specs(settings.tasks_dir)
    # The bundled model takes a minute to write: files are read before.
    refuse_unfit_files(args.text, args.inputs, specs)
    made_from = {folder: _provenance(folder) for folder in args.compare}
    baseline = _baseline(args, made_from, settings.state)
    _refuse_other_base(made_from, file_manifest(baseline).root)
    subjects = [Subject("baseline", baseline)]
    subjects += [Subject(_name(folder, args.compare), folder) for folder in args.compare]
    machine = this_machine()
    materials = Materials(
        passages=passages_from(args.text, baseline),
        inputs=inputs_from(args.inputs, specs, baseline),
        rounds=args.rounds,
        machine=machine,
    )
    with (
        JsonLines() if args.json else Bar() as progress,
        tempfile.TemporaryDirectory(prefix="narrowgate-compare-") as scratch,
    ):
        measured = measure(subjects, materials, Path(scratch), progress.step)
    document = as_document(measured, materials)
    if args.json:
        print(json.dumps(document))
    else:
        print_table(measured, materials)
    return 0


def _provenance(folder: Path) -> tuple[str, str | None, str] | None:
    """Return id, revision and digest of the model an artifact was made from, if recorded."""
    refuse_no_checkpoint(folder, field="compare")
    try:
        base = json.loads(read_plain_text(folder / FILE))["base"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UnsuitableModel(
            f"{FILE} of {str(folder)!r} is damaged: {error}", field="compare"
        ) from error
    return base["id"], base["revision"], str(base["digest"]).removeprefix("sha256:")


def _baseline(
    args: argparse.Namespace,
    made_from: dict[Path, tuple[str, str | None, str] | None],
    state: Path,
) -> Path:
    if args.model is not None:
        return parse_source(args.model, args.revision, state).made().fetch()
    known = [base for base in made_from.values() if base is not None]
    for name, revision, _ in known:
        if name == BUNDLED_MODEL or revision is not None:
            return parse_source(name, revision, state).made().fetch()
    raise UnsuitableModel(
        "the provenance of the artifacts does not name their 16-bit model",
        field="model",
        fix="name it: narrowgate quantize MODEL --compare DIR...",
    )


def _refuse_other_base(
    made_from: dict[Path, tuple[str, str | None, str] | None], baseline: str
) -> None:
    for folder, base in made_from.items():
        if base is not None and base[2] != baseline:
            raise UnsuitableModel(
                f"{str(folder)!r} was made from a model with digest {base[2][:16]}, and the "
                f"baseline's is {baseline[:16]}",
                field="compare",
                fix="compare artifacts of one model",
            )


def _name(folder: Path, others: list[Path]) -> str:
    name = folder.resolve().name
    same = [other for other in others if other.resolve().name == name]
    return name if len(same) == 1 else str(folder)
