"""Heads as candidates of a task's local answer."""

import numpy as np

from serving.contracts.answer import Answer
from serving.evidence.candidates import LocalView, Proposal
from serving.evidence.heads.candidate import Floats, HeadInputs, log_probabilities
from serving.evidence.heads.statement import Head


class HeadCandidate:
    """Implements CandidateModel with a verified head. Its confidence is its largest probability."""

    def __init__(self, head: Head) -> None:
        self._candidate = head.candidate
        self.name = head.name
        self.needs_model = head.candidate.needs_model

    def propose(self, view: LocalView) -> Proposal | None:
        """Return the head's answer; None where the view lacks the vector or the model's answer."""
        candidate = self._candidate
        logs = _log_probabilities(view.answer, candidate.labels)
        if (candidate.needs_vector and view.vector is None) or (
            candidate.needs_model and logs is None
        ):
            return None
        vectors = None if view.vector is None else view.vector.reshape(1, -1)
        inputs = HeadInputs(vectors, np.array([view.length], np.int32), logs)
        (found,) = candidate.probabilities(inputs).tolist()
        probabilities = dict(zip(candidate.labels, found, strict=True))
        at = max(range(len(found)), key=found.__getitem__)
        confidence = candidate.confidence(found[at], at)
        return Proposal(candidate.labels[at], confidence, probabilities)


def _log_probabilities(answer: Answer | None, labels: tuple[str, ...]) -> Floats | None:
    """Return (1, labels) of the local model; None where it gave no probability of every label."""
    known = None if answer is None else answer.label_probabilities
    if known is None or set(known) != set(labels):
        return None
    return log_probabilities(np.array([[known[label] for label in labels]], np.float64))


def model_logs(view: LocalView, labels: tuple[str, ...]) -> Floats | None:
    """Return (labels,) log-probabilities of the local model, as examples store them."""
    logs = _log_probabilities(view.answer, labels)
    return None if logs is None else logs[0]
