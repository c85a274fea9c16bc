"""Task classes of the built-in suites, for lm-eval's task files in this folder."""

from typing import Any

from evals.definition import SuiteTask
from evals.suite import built_in_suites
from serving.tasks.catalog import load_specs


class _BuiltIn(SuiteTask):
    name: str

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        (suite,) = (s for s in built_in_suites(load_specs(None)) if s.name == self.name)
        super().__init__(suite, config)


class Sentiment(_BuiltIn):
    """Sentiment of short texts."""

    name = "sentiment"


class Topic(_BuiltIn):
    """Topic of documents."""

    name = "topic"


class Entities(_BuiltIn):
    """Named entities."""

    name = "ner"


class Translations(_BuiltIn):
    """Every direction between the four languages."""

    name = "translation"
