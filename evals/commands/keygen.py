"""`narrowgate keygen`: make the key pair for signing and verifying attestations."""

import argparse
import json
from pathlib import Path

HELP = "make an Ed25519 key pair for signing and verifying attestations"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE",
        help="private key, only for gates; FILE.pub is the public key, for servers",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Write both files and print their paths."""
    from serving.artifacts.signing_key import generate_key

    pair = generate_key(args.out)
    if args.json:
        found = {"private": str(pair.private), "public": str(pair.public), "key_id": pair.key_id}
        print(json.dumps(found))
    else:
        print(f"private key  {pair.private}  (store it only where gates run)")
        print(f"public key   {pair.public}  (attestation.trusted_keys of the servers)")
        print(f"key id       {pair.key_id}")
    return 0
