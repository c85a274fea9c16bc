"""The findings of a gate run, example by example: the input of the reports."""

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal

from serving.contracts.attestation import GatePredicate, TaskResult, Verdict
from serving.contracts.task_spec import TaskSpec

Half = Literal["calibration", "certification", "comparison"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One example with both models' answers.

    expected, baseline, candidate: readable text. raw: the candidate's raw confidence. calibrated:
    None without a calibration map. half: of the suite; `comparison` where the user's own inputs
    replace the certification half.
    """

    id: str
    text: str
    slice: str | None
    expected: str
    baseline: str
    candidate: str
    baseline_right: bool
    candidate_right: bool
    raw: float
    calibrated: float | None
    half: Half

    @property
    def flipped(self) -> bool:
        """Return whether candidate and baseline answered differently."""
        return self.baseline != self.candidate


@dataclass(frozen=True, slots=True)
class OwnOutcome:
    """The candidate's answer to one of the user's own inputs. raw, calibrated: as of an Outcome."""

    raw: float
    calibrated: float | None
    candidate_right: bool


@dataclass(frozen=True, slots=True)
class TaskFindings:
    """One task: its spec, the signed numbers, and the examples.

    own_outcomes: of the user's own inputs; empty where the suite certifies.
    """

    spec: TaskSpec
    result: TaskResult
    outcomes: tuple[Outcome, ...]
    own_outcomes: tuple[OwnOutcome, ...] = ()


@dataclass(frozen=True, slots=True)
class LabelRun:
    """How a run got the labels of a reference. labels: of inputs. reused: answers that an earlier
    run had paid for. paid_usd: of the batches that this run took in; None where it is not known.
    """

    reference: str
    labels: int
    reused: int
    paid_usd: Decimal | None
    batches: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Findings:
    """A whole gate run. subject: the artifact's name. digest: its root, hex. steps_s: duration of
    each step, not signed. labels: None where the suites' own were used; not signed. baseline: what
    is attested of the 16-bit model; None where the run was not asked for it.
    """

    subject: str
    digest: str
    predicate: GatePredicate
    tasks: dict[str, TaskFindings]
    steps_s: dict[str, float] = field(default_factory=dict)
    labels: LabelRun | None = None
    baseline: GatePredicate | None = None


def overall_verdict(findings: Findings) -> Verdict:
    """Return fail if any task or check failed; else inconclusive if any was, or if no task was
    tested.
    """
    verdicts = {found.result.verdict for found in findings.tasks.values()}
    verdicts |= {check.verdict for check in findings.predicate.general.values()}
    if Verdict.FAIL in verdicts:
        return Verdict.FAIL
    if Verdict.INCONCLUSIVE in verdicts or not findings.tasks:
        return Verdict.INCONCLUSIVE
    return Verdict.PASS
