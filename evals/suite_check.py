"""Checks whether a gate can use a suite, and which bounds its size can prove. Pure."""

import math
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

from evals.certification import accepted_needed
from evals.suite import Suite, calibration_half
from serving.contracts.errors import InvalidSuite
from serving.contracts.task_spec import (
    ClassificationSpec,
    ExtractionSpec,
    TaskSpec,
    TranslationSpec,
)
from serving.tasks.fingerprint import text_digest

ALPHAS = (0.01, 0.02, 0.05, 0.1, 0.2)
FLIP_RATES = (0.02, 0.05, 0.1)
_USUAL_FLIPS = 0.05
_LARGEST_RATIO = 3.0
# One-sided 95 % of the standard normal distribution.
_Z = 1.645
_NAMED = 3
_NOT_LETTERS = re.compile(r"[\W\d_]+")


@dataclass(frozen=True, slots=True)
class Words:
    """The lengths of the texts, in words separated by white space."""

    fewest: int
    median: float
    most: int


@dataclass(frozen=True, slots=True)
class ErrorBound:
    """Whether an error rate among accepted answers can be certified at 95 %.

    needed: number of accepted texts, all answered right. reachable: whether the certification half
    has that many. coverage: share of that half that must be accepted; None if it is too small.
    """

    alpha: float
    needed: int
    reachable: bool
    coverage: float | None


@dataclass(frozen=True, slots=True)
class Resolution:
    """The smallest margin that can be decided when a share of the answers flips without a net loss.

    margin: in units of accuracy, one-sided 95 %; for other metrics a rule of thumb.
    """

    flips: float
    margin: float


@dataclass(frozen=True, slots=True)
class SuiteReport:
    """The findings of a check. A gate refuses a suite with problems, not one with warnings.

    groups: independent texts. certification_groups: those in the certification half. counts:
    examples by label or direction, or mentions by entity type. without_entities: share of the
    examples, None where the task has no entities. target: the bound for the task's target error.
    """

    name: str
    source: str
    kind: str
    digest: str
    examples: int
    groups: int
    certification_groups: int
    counts: Mapping[str, int]
    without_entities: float | None
    words: Words
    bounds: tuple[ErrorBound, ...]
    target: ErrorBound
    resolutions: tuple[Resolution, ...]
    problems: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def fit(self) -> bool:
        """Return whether a gate accepts the suite."""
        return not self.problems


def check(suite: Suite) -> SuiteReport:
    """Return the contents of a suite, its problems, and the bounds that its size can prove."""
    groups = {example.group for example in suite.examples}
    tested = sum(not calibration_half(group) for group in groups)
    lengths = [len(example.request.text.split()) for example in suite.examples]
    target = error_bound_for(suite.spec.target_error, tested)
    counts = _counts(suite)
    repeated = _repeated(suite, text_digest)
    return SuiteReport(
        name=suite.name,
        source=suite.source,
        kind=suite.spec.kind,
        digest=suite.digest(),
        examples=len(suite.examples),
        groups=len(groups),
        certification_groups=tested,
        counts=counts,
        without_entities=_without_entities(suite),
        words=Words(min(lengths), statistics.median(lengths), max(lengths)),
        bounds=tuple(error_bound_for(alpha, tested) for alpha in ALPHAS),
        target=target,
        resolutions=tuple(Resolution(r, smallest_margin(r, len(groups))) for r in FLIP_RATES),
        problems=tuple(_problems(suite, counts, repeated)),
        warnings=(
            *_content_warnings(suite, counts, repeated),
            *_size_warnings(suite.spec, target, tested, len(groups)),
        ),
    )


def refuse_unfit(suite: Suite) -> None:
    """Refuse a suite that has problems. Raises InvalidSuite, which names them."""
    report = check(suite)
    if not report.fit:
        raise InvalidSuite(
            f"suite {suite.name} ({suite.source}) is unfit: " + "; ".join(report.problems),
            field="suite",
            fix="run narrowgate suite check for every finding",
        )


def error_bound_for(alpha: float, tested: int) -> ErrorBound:
    """Return the requirements for certifying an error rate on a half of `tested` texts."""
    needed = accepted_needed(alpha)
    reachable = needed <= tested
    return ErrorBound(alpha, needed, reachable, needed / tested if reachable else None)


def smallest_margin(flips: float, n: int) -> float:
    """Return the smallest loss that n examples can distinguish from zero.

    flips: share of changed answers. The difference of two accuracies on the same examples has
    variance flips / n where gains equal losses; its one-sided 95 % bound is 1.645 standard errors
    away.
    """
    return _Z * math.sqrt(flips / n)


def few_shot_digests(spec: TaskSpec) -> frozenset[str]:
    """Return the digests of the texts in the task's prompt, in every language."""
    if isinstance(spec, TranslationSpec):
        return frozenset(text_digest(text) for shown in spec.examples for text in shown.values())
    return frozenset(text_digest(shown.text) for shown in spec.examples)


def _counts(suite: Suite) -> dict[str, int]:
    found: Counter[str] = Counter()
    for example in suite.examples:
        if isinstance(example.expected, tuple):
            found.update(kind for _, kind in example.expected)
        else:
            found[example.slice or example.expected] += 1
    return {name: found[name] for name in _names(suite.spec)}


def _names(spec: TaskSpec) -> list[str]:
    match spec:
        case ClassificationSpec():
            return [label.name for label in spec.labels]
        case ExtractionSpec():
            return [item.name for item in spec.entity_types]
        case TranslationSpec():
            return ["-".join(pair) for pair in permutations(spec.languages, 2)]


def _without_entities(suite: Suite) -> float | None:
    if not isinstance(suite.spec, ExtractionSpec):
        return None
    return sum(not example.expected for example in suite.examples) / len(suite.examples)


def _problems(suite: Suite, counts: Mapping[str, int], repeated: Sequence[str]) -> Iterator[str]:
    if repeated:
        yield f"{len(repeated)} texts occur more than once: {_listed(repeated)}"
    missing = [name for name, count in counts.items() if count == 0]
    is_labelled = all(example.labelled_by != "nobody" for example in suite.examples)
    if missing and is_labelled and not isinstance(suite.spec, TranslationSpec):
        what = "label" if isinstance(suite.spec, ClassificationSpec) else "entity type"
        yield f"no example of {what} {_listed(missing)}"
    known = suite.text_digests()
    shown = sorted(known[digest] for digest in few_shot_digests(suite.spec) & known.keys())
    if shown:
        yield f"{len(shown)} texts are in the task's own prompt: {_listed(shown)}"


def _content_warnings(
    suite: Suite, counts: Mapping[str, int], repeated: Sequence[str]
) -> Iterator[str]:
    exact = set(repeated)
    near = [item for item in _repeated(suite, _letters) if item not in exact]
    if near:
        yield f"{len(near)} texts differ only in punctuation or digits: {_listed(near)}"
    missing = [name for name, count in counts.items() if count == 0]
    if isinstance(suite.spec, TranslationSpec) and missing:
        yield f"{len(missing)} of {len(counts)} directions have no example: {_listed(missing)}"
    present = [count for count in counts.values() if count]
    if isinstance(suite.spec, ClassificationSpec) and present:
        ratio = max(present) / min(present)
        if ratio > _LARGEST_RATIO:
            yield f"the largest label has {ratio:.1f} times as many examples as the smallest"


def _size_warnings(spec: TaskSpec, target: ErrorBound, tested: int, groups: int) -> Iterator[str]:
    margin, least = spec.margins.int8, smallest_margin(_USUAL_FLIPS, groups)
    if not target.reachable:
        yield (
            f"the target error {target.alpha:g} needs {target.needed} accepted texts, and the "
            f"certification half has {tested}: no gate can pass"
        )
    if margin < least:
        yield (
            f"an int8 margin of {margin:g} cannot be decided when {_USUAL_FLIPS:.0%} of the "
            f"answers flip: {groups} texts decide {least:.3f}, {_texts_for(margin)}"
        )


def _texts_for(margin: float) -> str:
    if margin == 0.0:
        return "and no number of texts decides a margin of 0"
    return f"and {math.ceil(_USUAL_FLIPS * (_Z / margin) ** 2)} are needed"


def _texts(suite: Suite) -> Iterator[tuple[str, str, str]]:
    """Yield each distinct (group, language, text); only translations have a language."""
    seen: set[tuple[str, str, str]] = set()
    for example in suite.examples:
        request = example.request
        held = [(example.group, request.source_language or "", request.text)]
        # A model may translate two texts to one.
        if isinstance(suite.spec, TranslationSpec) and example.labelled_by == "suite":
            held.append((example.group, request.target_language or "", str(example.expected)))
        for item in held:
            if item not in seen:
                seen.add(item)
                yield item


def _repeated(suite: Suite, key: Callable[[str], str]) -> list[str]:
    """Return `first = later` for every text with the key of an earlier text. Empty keys never
    match.
    """
    first: dict[tuple[str, str], str] = {}
    found = []
    for group, language, text in _texts(suite):
        value = key(text)
        earlier = first.setdefault((language, value), group) if value else group
        if earlier != group:
            found.append(f"{earlier} = {group}" + (f" ({language})" if language else ""))
    return found


def _letters(text: str) -> str:
    return _NOT_LETTERS.sub(" ", text).casefold().strip()


def _listed(items: Iterable[str]) -> str:
    every = list(items)
    rest = len(every) - _NAMED
    return ", ".join(every[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
