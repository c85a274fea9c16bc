"""`narrowgate verify`: check a model against its attestation, or an exported claim."""

import argparse
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from serving.commands.progress import step
from serving.host.numbers import refuse_outside, signed_number

if TYPE_CHECKING:
    from serving.artifacts.trust import Attestation
    from serving.contracts.errors import NarrowgateError
    from serving.contracts.settings import ModelSettings

HELP = "verify a model's attestation (signature, age, files, --probe its answers) or a claim"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "folder", type=Path, metavar="DIR",
        help="the model's folder, or the file of an exported claim",
    )  # fmt: skip
    parser.add_argument(
        "--trust", type=Path, action="append", required=True, metavar="FILE",
        help="public key that is trusted; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--attestation", type=Path, metavar="FILE", help="the envelope (DIR/attestation.json)"
    )
    parser.add_argument(
        "--max-age-days", type=signed_number, metavar="N", help="refuse an older attestation"
    )
    parser.add_argument(
        "--probe", action="store_true",
        help="load the model and compare its answers to the attested probes",
    )  # fmt: skip
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="settings of the engine for --probe (YAML)"
    )
    parser.add_argument(
        "--model", metavar="ID", help="model of the settings, for --probe (the first)"
    )


def run(args: argparse.Namespace) -> int:
    """Verify and print the attestation; exit 1 where it is refused."""
    from serving.artifacts.trust import (
        TrustPolicy,
        attestation_path,
        read_attestation,
        verify_files,
    )
    from serving.contracts.errors import AttestationRefused

    refuse_outside("--max-age-days", args.max_age_days, least=0.0)
    if args.folder.is_file():
        _refuse_options_of_models(args)
        return _verify_claim(args)
    policy = TrustPolicy(tuple(args.trust), args.max_age_days)
    try:
        found = read_attestation(attestation_path(args.folder, args.attestation), policy)
        started = time.perf_counter()
        manifest = verify_files(args.folder, found)
        seconds = time.perf_counter() - started
        if args.probe:
            _probe(args.folder, found, _model(args.config, args.model))
    except AttestationRefused as error:
        return _refused(args, error)
    if args.json:
        document = {**_document(found), "digest_seconds": seconds, "probed": args.probe}
        print(json.dumps(document))
    else:
        _print(found)
        size = sum((args.folder / name).stat().st_size for name in manifest.files)
        print(f"  {len(manifest.files)} files, {size / 1e9:.2f} GB, digested in {seconds:.2f} s")
        if args.probe:
            count = sum(len(each.probes) for each in found.predicate.probes.values())
            print(f"  {count} probes answered as attested")
    return 0


def _refused(args: argparse.Namespace, error: "NarrowgateError") -> int:
    if args.json:
        print(json.dumps({"valid": False, "reason": error.message, "fix": error.fix}))
    else:
        print(f"REFUSED: {error.message}")
        if error.fix:
            print(f"  fix: {error.fix}")
    return 1


def _refuse_options_of_models(args: argparse.Namespace) -> None:
    """Raise InvalidArgument for a check that an exported claim does not allow."""
    from serving.contracts.errors import InvalidArgument

    for name in ("attestation", "max_age_days", "probe", "config", "model"):
        # Not by equality: an age of 0 equals False.
        if (given := getattr(args, name)) is not None and given is not False:
            option = f"--{name.replace('_', '-')}"
            raise InvalidArgument(
                f"{option} checks a model, and {str(args.folder)!r} is a file: a claim's export",
                field=option,
                fix="leave the option out; an export has no date",
            )


def _verify_claim(args: argparse.Namespace) -> int:
    from serving.contracts.errors import AttestationRefused
    from serving.evidence.administration import document
    from serving.evidence.export import verify_claim

    try:
        found = verify_claim(args.folder, args.trust)
    except AttestationRefused as error:
        return _refused(args, error)
    claim = found.claim
    if args.json:
        print(json.dumps({"valid": True, "key_id": found.key_id, "claim": document(claim)}))
        return 0
    print(f"valid: claim {claim.id} on {claim.scope.subject}, {claim.state.value} when exported")
    print(f"  signed by    {found.key_id}")
    print(f"  target       error at most {claim.target_error:g} against {claim.reference}")
    if claim.observed_error is not None and claim.interval is not None:
        low, high = claim.interval
        print(
            f"  observed     {claim.observed_error:.3f} ({low:.3f} to {high:.3f}) in "
            f"{claim.audits} audits"
        )
    print("  A claim is in force only where it was earned; reading it changes nothing.")
    return 0


def _model(config: Path | None, model_id: str | None) -> "ModelSettings":
    from serving.contracts.errors import UnknownModel
    from serving.contracts.settings_sources import load_settings
    from serving.settings_linter import lint_engines

    settings = load_settings(config, {})
    lint_engines(settings)
    for model in settings.models:
        if model_id in (None, model.id):
            return model
    raise UnknownModel(
        f"the settings have no model {model_id!r}",
        field="model",
        fix="use one of: " + ", ".join(model.id for model in settings.models),
    )


def _probe(folder: Path, found: "Attestation", model: "ModelSettings") -> None:
    """Load the model and compare its probe answers. Raises AttestationRefused, EngineFailure."""
    from serving.artifacts.checkpoint import Checkpoint
    from serving.artifacts.probes import probe_works, refuse_other_answers
    from serving.artifacts.trust import (
        refuse_other_arguments,
        refuse_other_engine,
        refuse_other_kernels,
    )
    from serving.contracts.errors import AttestationRefused
    from serving.local.deployment import offline_arguments
    from serving.local.offline import OfflineEngine
    from serving.local.offline_work import engine_version, kernels, run_scoring
    from serving.tasks.prompt import CheckpointTokenizer

    probes, engine = found.predicate.probes, found.predicate.engine
    if not probes:
        raise AttestationRefused("the attestation has no probes", fix="run the gate again")
    arguments, environment = offline_arguments(model, Checkpoint(str(folder.resolve()), None))
    refuse_other_arguments(found, arguments, {**os.environ, **environment})
    works = probe_works(probes, CheckpointTokenizer.load(folder), engine.max_model_len)
    with step("loading the model for its probes"):
        running = OfflineEngine.start(arguments, environment)
    try:
        refuse_other_engine(found, "vllm", running.call(engine_version))
        refuse_other_kernels(found, running.call(kernels))
        refuse_other_answers(probes, running.call(run_scoring, works))
    finally:
        running.stop()


def _document(found: "Attestation") -> dict[str, object]:
    return {
        "valid": True,
        "attestation": found.digest,
        "subject": {"name": found.name, "digest": f"sha256:{found.root}"},
        "key_id": found.key_id,
        "date": found.predicate.date.isoformat(),
        "engine": f"{found.predicate.engine.name} {found.predicate.engine.version}",
        "tasks": {name: task.verdict.value for name, task in found.predicate.tasks.items()},
    }


def _print(found: "Attestation") -> None:
    predicate = found.predicate
    print(f"valid: {found.name}  sha256:{found.root}")
    print(f"  attestation  {found.digest}")
    print(f"  signed by    {found.key_id}, {predicate.date:%Y-%m-%d %H:%M} UTC")
    print(f"  engine       {predicate.engine.name} {predicate.engine.version}")
    for name, task in predicate.tasks.items():
        certificate = task.certificate
        bound = (
            f"  error at most {certificate.bound:.3f} from confidence {certificate.threshold:.3f} "
            f"on, coverage {certificate.coverage:.2f}"
            if certificate is not None and certificate.threshold is not None
            else ""
        )
        print(f"  {name:<14} {task.verdict.value}{bound}")
