"""`narrowgate verify`: check that a model is what its attestation says, as serving does at load."""

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serving.artifacts.trust import Attestation

HELP = "verify a model's attestation: signature, age, and every file"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="the model's folder")
    parser.add_argument(
        "--trust", type=Path, action="append", required=True, metavar="FILE",
        help="public key that is trusted; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--attestation", type=Path, metavar="FILE", help="the envelope (DIR/attestation.json)"
    )
    parser.add_argument(
        "--max-age-days", type=float, metavar="N", help="refuse an older attestation"
    )


def run(args: argparse.Namespace) -> int:
    """Verify and print what is attested; exit 1 where it is refused."""
    from serving.artifacts.trust import (
        TrustPolicy,
        attestation_path,
        read_attestation,
        verify_files,
    )
    from serving.contracts.errors import AttestationRefused

    policy = TrustPolicy(tuple(args.trust), args.max_age_days)
    try:
        found = read_attestation(attestation_path(args.folder, args.attestation), policy)
        started = time.perf_counter()
        manifest = verify_files(args.folder, found)
        seconds = time.perf_counter() - started
    except AttestationRefused as error:
        if args.json:
            print(json.dumps({"valid": False, "reason": error.message, "fix": error.fix}))
        else:
            print(f"REFUSED: {error.message}")
            if error.fix:
                print(f"  fix: {error.fix}")
        return 1
    if args.json:
        print(json.dumps({**_document(found), "digest_seconds": seconds}))
    else:
        _print(found)
        size = sum((args.folder / name).stat().st_size for name in manifest.files)
        print(f"  {len(manifest.files)} files, {size / 1e9:.2f} GB, digested in {seconds:.2f} s")
    return 0


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
