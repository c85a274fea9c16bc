"""`narrowgate k8s fetch`: what a pod's init container runs. Needs neither Ray nor vLLM."""

import argparse
import json
from pathlib import Path

from serving.commands.progress import step
from serving.host.numbers import refuse_outside, signed_number

HELP = "fetch a model by digest from a folder or an https store, and verify it"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("source", metavar="STORE", help="folder or https URL with sha256-HEX/...")
    parser.add_argument("--artifact", required=True, metavar="sha256-HEX", help="the model")
    parser.add_argument(
        "--trust", type=Path, action="append", required=True, metavar="FILE",
        help="public key that is trusted; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="writes DIR/sha256-HEX"
    )
    parser.add_argument(
        "--descriptions", action="store_true",
        help="leave the weights out: for the gateway, which only tokenizes",
    )  # fmt: skip
    parser.add_argument(
        "--max-age-days", type=signed_number, metavar="N", help="refuse an older attestation"
    )
    parser.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document"
    )


def run(args: argparse.Namespace) -> int:
    """Fetch, verify and print the folder."""
    from serving.artifacts.fetch import fetch_model, open_store
    from serving.artifacts.trust import TrustPolicy
    from serving.kubernetes.digest import artifact_hex

    refuse_outside("--max-age-days", args.max_age_days, least=0.0)
    artifact = artifact_hex(args.artifact)
    policy = TrustPolicy(tuple(args.trust), args.max_age_days)
    with open_store(args.source, artifact) as store, step("fetching and verifying the model"):
        folder = fetch_model(store, artifact, policy, args.out, descriptions=args.descriptions)
    print(json.dumps({"folder": str(folder)}) if getattr(args, "json", False) else str(folder))
    return 0
