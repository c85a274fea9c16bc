"""What a rule is, and what it found."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from serving.kubernetes.lint.cluster import Manifests

Level = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Finding:
    """A place that breaks a rule. line: 1-based. message: what is written there."""

    rule: str
    message: str
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class Place:
    """A finding before it has its rule."""

    file: str
    line: int
    message: str


Check = Callable[[Manifests], Iterable[Place]]


@dataclass(frozen=True, slots=True)
class Rule:
    """One trap. title: what must hold. reason: what happens otherwise. source: where that is known.

    level: `error` where requests fail or a promise is broken, `warning` where it depends on use.
    """

    id: str
    title: str
    reason: str
    source: str
    fix: str
    level: Level
    check: Check

    def findings(self, manifests: Manifests) -> list[Finding]:
        """Return every place that breaks the rule, each once, in the order of files and lines."""
        places = {(place.file, place.line, place.message) for place in self.check(manifests)}
        return [Finding(self.id, message, file, line) for file, line, message in sorted(places)]
