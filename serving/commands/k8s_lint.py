"""`narrowgate k8s lint`: find in manifests what fails, or serves wrongly, on a cluster."""

import argparse
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from serving.contracts.plain_file import opened_plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from serving.kubernetes.lint.finding import Finding
    from serving.kubernetes.lint.manifests import Resource

HELP = "find in manifests what fails on a cluster with Ray"

_STDIN = "-"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "files", nargs="*", metavar="FILE", help="YAML or JSON manifests; - reads standard input"
    )
    parser.add_argument(
        "--ignore", action="append", default=[], metavar="ID", help="leave out a rule, e.g. K15"
    )
    parser.add_argument("--rules", action="store_true", help="list the rules and end")
    parser.add_argument("--sarif", action="store_true", help="print SARIF 2.1.0")
    parser.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document"
    )


def run(args: argparse.Namespace) -> int:
    """Print the findings; exit status 1 for any. Raises InvalidRequest."""
    from serving.contracts.errors import InvalidRequest
    from serving.kubernetes.lint.rules import RULES, lint

    if args.rules:
        return _list_rules(args)
    if not args.files:
        raise InvalidRequest("no file is named", field="file", fix="name manifests, or - for stdin")
    known = {rule.id for rule in RULES}
    for name in args.ignore:
        if name not in known:
            raise InvalidRequest(
                f"no rule has the id {name!r}", field="ignore", fix="--rules lists the ids"
            )
    resources = [found for file in args.files for found in _read(file)]
    if not any(resource.kind in ("RayService", "RayCluster") for resource in resources):
        raise InvalidRequest(
            f"none of {len(resources)} objects is a RayService or a RayCluster",
            field="file",
            fix="name the rendered manifests: kubectl kustomize DIR | narrowgate k8s lint -",
        )
    _refuse_unreadable_serve(resources)
    findings = lint(resources, args.ignore)
    _print(args, findings, resources)
    return 1 if findings else 0


def _read(file: str) -> "list[Resource]":
    from serving.contracts.errors import InvalidRequest
    from serving.kubernetes.lint.manifests import MAX_BYTES, read_manifests

    try:
        if file == _STDIN:
            # One byte more than is read tells that there is more.
            return read_manifests("stdin", sys.stdin.buffer.read(MAX_BYTES + 1))
        with opened_plain(Path(file)) as stream:
            return read_manifests(file, stream.read(MAX_BYTES + 1))
    except OSError as error:
        raise InvalidRequest(
            f"{file!r} cannot be read: {error.strerror}", field="file", fix="name a YAML file"
        ) from error


def _refuse_unreadable_serve(resources: "Sequence[Resource]") -> None:
    """Raise InvalidRequest: rules on applications would see none, and be silent."""
    from serving.contracts.errors import InvalidRequest
    from serving.kubernetes.lint.cluster import Manifests

    for cluster in Manifests(resources).clusters:
        if cluster.serve_problem is not None:
            raise InvalidRequest(
                f"{cluster.resource.file!r} line {cluster.serve_line}: serveConfigV2 of "
                f"{cluster.resource.title} {cluster.serve_problem}",
                field="serveConfigV2",
                fix="write `serveConfigV2: |` and the Serve config below it",
            )


def _print(
    args: argparse.Namespace, findings: "Sequence[Finding]", resources: "Sequence[Resource]"
) -> None:
    from serving.kubernetes.lint.rules import RULES
    from serving.kubernetes.lint.sarif import sarif

    rules = {rule.id: rule for rule in RULES}
    if args.sarif:
        print(json.dumps(sarif(findings, RULES, version("narrowgate")), indent=1))
        return
    if args.json:
        rows = [
            {
                "rule": found.rule,
                "level": rules[found.rule].level,
                "file": found.file,
                "line": found.line,
                "message": found.message,
                "reason": rules[found.rule].reason,
                "fix": rules[found.rule].fix,
            }
            for found in findings
        ]
        print(json.dumps({"objects": len(resources), "findings": rows}))
        return
    for found in findings:
        rule = rules[found.rule]
        print(f"{found.file}:{found.line}: {rule.level} {found.rule}: {found.message}")
        print(f"    {rule.reason}\n    fix: {rule.fix}")
    print(f"{len(resources)} objects, {len(findings)} findings")


def _list_rules(args: argparse.Namespace) -> int:
    from serving.kubernetes.lint.rules import RULES

    if args.json:
        keys = ("id", "level", "title", "reason", "source", "fix")
        print(json.dumps([{key: getattr(rule, key) for key in keys} for rule in RULES]))
        return 0
    for rule in RULES:
        print(f"{rule.id}  {rule.level:<8} {rule.title}\n     {rule.reason}")
        print(f"     source: {rule.source}\n     fix: {rule.fix}")
    return 0
