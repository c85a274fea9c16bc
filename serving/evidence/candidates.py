"""The candidates of a local task: forms of its local answer, each with a confidence. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from serving.contracts.answer import Answer, Value
from serving.contracts.evidence import NO_GUARANTEE, Candidate
from serving.contracts.task_spec import TaskSpec
from serving.evidence.standing import Standing
from serving.tasks.loss import loss_of

MODEL = "model"
"""The candidate that is the local model as it is attested."""


@dataclass(frozen=True, slots=True)
class LocalView:
    """What is known locally of one input. answer: the local model's, None where none runs.

    vector: of the text, (dimensions,) float32, None where it was not computed. length: of the
    text, Unicode code points.
    """

    answer: Answer | None
    vector: NDArray[np.float32] | None = None
    length: int = 0


@dataclass(frozen=True, slots=True)
class Proposal:
    """A candidate's answer. confidence: in the candidate's own units; below 0 is never accepted."""

    value: Value
    confidence: float
    label_probabilities: Mapping[str, float] | None = None
    valid: bool = True


class CandidateModel(Protocol):
    """A form of the local answer. Versions are part of the name."""

    @property
    def name(self) -> str:
        """Return the candidate's name, as actions and audits carry it."""
        ...

    @property
    def needs_model(self) -> bool:
        """Return whether it needs the local model's answer."""
        ...

    def propose(self, view: LocalView) -> Proposal | None:
        """Return its answer; None where the view lacks what it needs. Takes microseconds."""
        ...


class AttestedModel:
    """The local model's own answer; its confidence is the calibrated one where one is attested."""

    name = MODEL
    needs_model = True

    def propose(self, view: LocalView) -> Proposal | None:
        """Return the model's answer."""
        answer = view.answer
        if answer is None:
            return None
        found = answer.calibrated_confidence
        confidence = found if found is not None else answer.confidence or 0.0
        return Proposal(
            answer.value,
            confidence if answer.valid else -1.0,
            answer.label_probabilities,
            answer.valid,
        )


def judged(
    spec: TaskSpec, candidates: Sequence[CandidateModel], view: LocalView, right: Value | None
) -> tuple[Candidate, ...]:
    """Return what each candidate made of an input.

    right: the reference's answer; None where no verdict came, which is a loss of 1.
    """
    found = []
    for candidate in candidates:
        proposal = candidate.propose(view)
        if proposal is not None:
            loss = (
                1.0 if right is None else loss_of(spec, proposal.value, right, valid=proposal.valid)
            )
            found.append(
                Candidate(candidate.name, proposal.confidence, loss, label_of(spec, proposal.value))
            )
    return tuple(found)


def label_of(spec: TaskSpec, value: Value | None) -> str | None:
    """Return a classification's label; entities and translations hold texts, which are not kept."""
    return value if isinstance(value, str) and spec.kind == "classification" else None


def under_standing(
    answer: Answer, standing: Standing | None, proposal: Proposal | None = None
) -> Answer:
    """Return a local answer as its claim lets it be served.

    proposal: of the claimed candidate where that is not the attested model.
    """
    if standing is None or standing.mode == "suite":
        return answer
    if standing.mode != "claim" or standing.action is None:
        return answer.model_copy(update={"below_threshold": True, "guarantee": NO_GUARANTEE})
    found = proposal or AttestedModel().propose(LocalView(answer))
    assert found is not None
    below = not found.valid or found.confidence < standing.action.threshold
    changed: dict[str, object] = {
        "below_threshold": below,
        "guarantee": NO_GUARANTEE if below else standing.guarantee,
    }
    if proposal is not None:
        changed |= {
            "value": found.value,
            "label_probabilities": found.label_probabilities,
            "confidence": max(0.0, min(1.0, found.confidence)),
            "calibrated_confidence": None,
            "valid": found.valid,
        }
    return answer.model_copy(update=changed)
