"""Makes the engine's work for each example of a suite and parses the outputs to answers."""

from collections.abc import Sequence
from dataclasses import dataclass

from evals.subject import Subject
from evals.suite import Example, Suite, calibration_half
from serving.contracts.answer import Prediction
from serving.contracts.engine import EngineOutput, EngineWork
from serving.contracts.errors import InvalidRequest, InvalidSuite
from serving.contracts.task_spec import ClassificationSpec
from serving.tasks.classification import label_offsets


@dataclass(frozen=True, slots=True)
class Answered:
    """One model's answers to a suite. label_offsets: of a classification, otherwise None."""

    predictions: tuple[Prediction, ...]
    label_offsets: dict[str, float] | None


def works(
    subject: Subject, suite: Suite, examples: Sequence[Example] | None = None
) -> list[EngineWork]:
    """Return the engine's work for examples of a suite; None: for all.

    Raises InvalidSuite for an example that is not a valid request, e.g. too long.
    """
    task = subject.task(suite.spec)
    found = []
    for example in suite.examples if examples is None else examples:
        try:
            found.append(task.plan(example.request))
        except InvalidRequest as error:
            raise InvalidSuite(
                f"suite {suite.name}, example {example.id!r}: {error.message}",
                field=error.field,
                fix=error.fix,
            ) from error
    return found


def read(subject: Subject, suite: Suite, outputs: Sequence[EngineOutput]) -> Answered:
    """Parse the engine's outputs, one for each example of the suite."""
    predictions = _predictions(subject, suite, outputs, None)
    if not isinstance(suite.spec, ClassificationSpec):
        return Answered(predictions, None)
    # Estimated on the calibration half, without its labels.
    pairs = zip(suite.examples, predictions, strict=True)
    half = [prediction for example, prediction in pairs if calibration_half(example.group)]
    probabilities = [prediction.label_probabilities or {} for prediction in half or predictions]
    offsets = label_offsets(probabilities)
    return Answered(_predictions(subject, suite, outputs, offsets), offsets)


def read_own_inputs(
    subject: Subject,
    inputs: Suite,
    outputs: Sequence[EngineOutput],
    offsets: dict[str, float] | None,
) -> Answered:
    """Return the answers to a user's own inputs. offsets: those measured on the suite."""
    return Answered(_predictions(subject, inputs, outputs, offsets), offsets)


def answer(subject: Subject, suite: Suite) -> Answered:
    """Run one model on a whole suite. Blocking. Raises EngineFailure, InvalidSuite."""
    return read(subject, suite, subject.run(works(subject, suite)).outputs)


def _predictions(
    subject: Subject,
    suite: Suite,
    outputs: Sequence[EngineOutput],
    offsets: dict[str, float] | None,
) -> tuple[Prediction, ...]:
    task = subject.task(suite.spec, offsets)
    pairs = zip(suite.examples, outputs, strict=True)
    return tuple(task.read(example.request, output) for example, output in pairs)
