"""Folds people's labels of audited inputs into the error against people. Pure."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from serving.contracts.evidence import Audit, Candidate, PeopleError
from serving.evidence.statistics.intervals import clopper_pearson
from serving.evidence.statistics.people import MIN_LABELS, error_against_people

REFERENCE, SERVED = "reference", "served"
"""Names in a label's row: of the reference's answer, whose loss is against the person, and of the
served answer, whose loss is against the reference."""


def labelled_row_candidates(audit: Audit, label: str) -> tuple[Candidate, ...]:
    """Return what a label's row says of the audit that it labels, so that it needs no other row."""
    found = [Candidate(REFERENCE, 1.0, float(audit.label != label))]
    if audit.origin == "accepted" and audit.loss is not None:
        found.append(Candidate(SERVED, 1.0, audit.loss))
    return tuple(found)


@dataclass(slots=True)
class PeopleLabels:
    """People's labels of one claim, the first of each input.

    judged: losses against the reference of all inputs accepted under the claimed hypothesis. pairs:
    of the labelled ones, the loss against the reference and against the person.
    """

    judged: list[float] = field(default_factory=list)
    pairs: list[tuple[float, float]] = field(default_factory=list)
    reference_errors: int = 0
    reference_labels: int = 0
    _seen: set[str] = field(default_factory=set)

    def hold(self) -> None:
        """Begin anew for another claimed hypothesis; the reference's own error is kept."""
        self.judged.clear()
        self.pairs.clear()

    def accepted(self, loss: float) -> None:
        """Count an audit of an accepted answer."""
        self.judged.append(loss)

    def add(self, row: Audit, *, is_claimed: bool) -> None:
        """Count a label. is_claimed: its input was accepted under the claimed hypothesis."""
        name = row.input.rpartition("/")[0]
        if name in self._seen or row.loss is None:
            return
        self._seen.add(name)
        for found in row.candidates:
            if found.name == REFERENCE:
                self.reference_labels += 1
                self.reference_errors += found.loss > 0.0
            elif found.name == SERVED and is_claimed:
                self.pairs.append((found.loss, row.loss))

    def error(self) -> PeopleError | None:
        """Return the error against people of accepted answers; None without a label of one."""
        if not self.pairs:
            return None
        left = Counter(self.judged) - Counter(judged for judged, _ in self.pairs)
        others = np.array(sorted(left.elements()), float)
        judged, people = (np.array(values, float) for values in zip(*self.pairs, strict=True))
        found = error_against_people(others, judged, people)
        is_ppi = len(people) >= MIN_LABELS and len(others) > 0
        reference = clopper_pearson(self.reference_errors, self.reference_labels)
        return PeopleError(
            labels=len(people),
            error=min(1.0, max(0.0, found.mean)),
            interval=(found.low, found.high),
            method="ppi" if is_ppi else "labels",
            reference_error=reference.mean,
            reference_interval=(reference.low, reference.high),
        )
