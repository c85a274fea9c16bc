"""Gives the inputs of a gate run the labels of a reference model, before any model is loaded."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from evals.answers import works
from evals.findings import LabelRun
from evals.gate import Request
from evals.label_orders import Bought, Estimate, LabelOrders
from evals.listing import first_of
from evals.population import refuse_too_few
from evals.reference_labels import Labelled, Labeller, Question, record_of
from evals.subject import Subject
from evals.suite import Suite
from evals.suite_check import refuse_unfit
from serving.contracts.errors import EvaluationFailed

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class LabelledRequest:
    """A run whose labels are a reference's, and what they cost."""

    request: Request
    run: LabelRun


def label_inputs(
    request: Request, reference: str, orders: LabelOrders, *, skip_unlabelled: bool
) -> LabelledRequest:
    """Return the request with the reference's labels on every input. Blocking, up to a day.

    skip_unlabelled: leave out inputs that the reference did not label, in place of
    EvaluationFailed. Raises InvalidSuite before anything is ordered, where an input does not fit.
    """
    subject = Subject("candidate", request.candidate, request.settings)
    try:
        labellers, questions = _asked(subject, request, reference)
        bought = orders.bought(questions)
        suites = {one.name: labellers[one.name].labelled(one, bought.answers)
                  for one in request.suites}  # fmt: skip
        own = {name: labellers[name].labelled(one.suite, bought.answers)
               for name, one in request.own_inputs.items()}  # fmt: skip
    finally:
        subject.close()
    by_name = {question.where: question.key for question in questions}
    without = _without([*suites.values(), *own.values()], bought, by_name)
    if without and not skip_unlabelled:
        _refuse_unlabelled(without, len(questions), reference)
    for found in suites.values():
        _refuse_empty(found, reference)
        refuse_unfit(found.suite)
    for found in own.values():
        _refuse_empty(found, reference)
        refuse_too_few(found.suite)
    labelled = replace(
        request,
        suites=[found.suite for found in suites.values()],
        own_inputs={
            name: replace(one, suite=own[name].suite, reference=reference)
            for name, one in request.own_inputs.items()
        },
        references={
            name: record_of(reference, [found, *([own[name]] if name in own else [])])
            for name, found in suites.items()
        },
    )
    run = LabelRun(
        reference, len(questions) - len(without), bought.reused, bought.paid_usd,
        tuple(bought.batches),
    )  # fmt: skip
    return LabelledRequest(labelled, run)


def label_estimate(request: Request, reference: str, orders: LabelOrders) -> Estimate:
    """Return what `label_inputs` would order; nothing is spent. Blocking."""
    subject = Subject("candidate", request.candidate, request.settings)
    try:
        return orders.estimate(_asked(subject, request, reference)[1])
    finally:
        subject.close()


def _asked(
    subject: Subject, request: Request, reference: str
) -> tuple[dict[str, Labeller], list[Question]]:
    """Return the labeller of each task, and a question for each input."""
    labellers: dict[str, Labeller] = {}
    questions: list[Question] = []
    for suite in _suites(request):
        # The run would refuse an input that is too long, after it was paid for.
        works(subject, suite)
        labeller = labellers.setdefault(suite.name, Labeller(reference, subject.task(suite.spec)))
        questions += labeller.questions(suite)
    return labellers, questions


def _suites(request: Request) -> Iterator[Suite]:
    yield from request.suites
    yield from (own.suite for own in request.own_inputs.values())


def _without(parts: list[Labelled], bought: Bought, keys: Mapping[str, str]) -> dict[str, str]:
    """Return the inputs without a label, and why."""
    return {
        where: bought.failed.get(keys[where], why)
        for found in parts
        for where, why in found.without.items()
    }


def _refuse_unlabelled(without: Mapping[str, str], inputs: int, reference: str) -> None:
    reasons = first_of([f"{where}: {why}" for where, why in without.items()], _SHOWN)
    raise EvaluationFailed(
        f"{len(without)} of {inputs} inputs have no label of {reference}: {reasons}",
        field="reference",
        fix="run the same command again, which asks again only for inputs that were not answered; "
        "or leave them out with --skip-unlabelled, which the report states",
    )


def _refuse_empty(found: Labelled, reference: str) -> None:
    if not found.suite.examples:
        raise EvaluationFailed(
            f"{reference} labelled no input of suite {found.suite.name}", field="reference"
        )
