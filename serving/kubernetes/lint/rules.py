"""All rules, in the order of their ids."""

from collections.abc import Collection, Sequence

from serving.kubernetes.lint import configuration, draining, generations, placement, pods
from serving.kubernetes.lint.cluster import Manifests
from serving.kubernetes.lint.finding import Finding, Rule
from serving.kubernetes.lint.manifests import Resource

_MODULES = (configuration, draining, generations, placement, pods)

RULES: tuple[Rule, ...] = tuple(
    sorted((rule for module in _MODULES for rule in module.RULES), key=lambda rule: rule.id)
)


def lint(resources: Sequence[Resource], ignored: Collection[str] = ()) -> list[Finding]:
    """Return the findings of all rules but the ignored ones, in the order of files and lines."""
    manifests = Manifests(resources)
    found = [
        finding for rule in RULES if rule.id not in ignored for finding in rule.findings(manifests)
    ]
    return sorted(found, key=lambda finding: (finding.file, finding.line, finding.rule))
