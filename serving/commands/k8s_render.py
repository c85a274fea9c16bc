"""`narrowgate k8s render`: the RayService and ConfigMap of a release."""

import argparse
import json
from pathlib import Path

from serving.host.safe_write import refuse_unwritable_output

HELP = "write the RayService and the ConfigMap of a release from its settings"

_EXIT_DRIFT = 1


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--settings", type=Path, required=True, metavar="FILE", help="settings")
    parser.add_argument(
        "--artifact", required=True, metavar="DIR|sha256-HEX",
        help="the model: its folder, which is digested, or its digest",
    )  # fmt: skip
    parser.add_argument(
        "--store", default="/store", metavar="DIR|URL",
        help="model store as pods see it: a mounted folder or an https URL (/store)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write the files there; printed if absent"
    )
    parser.add_argument(
        "--check", action="store_true",
        help="write nothing; exit 1 where the files in --out differ",
    )  # fmt: skip
    parser.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document"
    )


def run(args: argparse.Namespace) -> int:
    """Render; print, write or compare."""
    from serving.contracts.errors import InvalidArgument
    from serving.kubernetes.digest import artifact_of
    from serving.kubernetes.render import render

    if args.check and args.out is None:
        raise InvalidArgument(
            "--check compares with files, and --out names none",
            field="--check",
            fix="add --out DIR, the folder of the rendered files",
        )
    files = render(args.settings, artifact_of(args.artifact), args.store).files()
    if args.out is None:
        _print(files, as_json=args.json)
        return 0
    if args.check:
        differing = [name for name, text in files.items() if _read(args.out / name) != text]
        if args.json:
            print(json.dumps({"differing": differing}))
        else:
            for name in differing:
                print(f"{args.out / name} differs from the settings; render again")
        return _EXIT_DRIFT if differing else 0
    refuse_unwritable_output(args.out)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (args.out / name).write_text(text, encoding="utf-8")
    if args.json:
        print(json.dumps({"written": [str(args.out / name) for name in files]}))
    return 0


def _print(files: dict[str, str], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(files))
    else:
        print("---\n".join(files.values()), end="")


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None
