"""Findings as SARIF 2.1.0, which code hosts show beside the changed lines."""

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from serving.kubernetes.lint.finding import Finding, Rule

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def sarif(findings: Sequence[Finding], rules: Sequence[Rule], version: str) -> dict[str, Any]:
    """Return the document. version: of this program."""
    index = {rule.id: number for number, rule in enumerate(rules)}
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "narrowgate k8s lint",
                        "version": version,
                        "rules": [_rule(rule) for rule in rules],
                    }
                },
                "results": [
                    _result(found, index[found.rule], rules[index[found.rule]])
                    for found in findings
                ],
            }
        ],
    }


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.id,
        "shortDescription": {"text": rule.title},
        "fullDescription": {"text": f"{rule.reason} Source: {rule.source}."},
        "help": {"text": f"Fix: {rule.fix}."},
        "defaultConfiguration": {"level": rule.level},
    }


def _result(finding: Finding, index: int, rule: Rule) -> dict[str, Any]:
    return {
        "ruleId": finding.rule,
        "ruleIndex": index,
        "level": rule.level,
        "message": {"text": f"{finding.message}. {rule.reason} Fix: {rule.fix}."},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": quote(finding.file)},
                    "region": {"startLine": finding.line},
                }
            }
        ],
    }
