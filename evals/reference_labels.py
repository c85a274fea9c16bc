"""Labels of a reference model: the request for each input, and its answer as a label. Pure."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from evals.metrics import Expected
from evals.suite import Example, Suite
from serving.contracts.answer import TaskRequest, Translation
from serving.contracts.attestation import ReferenceLabels
from serving.contracts.errors import FrontierInvalidResponse, InvalidRequest, InvalidSuite
from serving.tasks.frontier_answer import read_frontier
from serving.tasks.frontier_prompt import frontier_prompt
from serving.tasks.loss import entity_pairs, loss_of
from serving.tasks.task import Task

_KEY_CHARS = 32


@dataclass(frozen=True, slots=True)
class Question:
    """One request to the reference. key: of the request's content: equal inputs are asked once.

    where: the first input that it is about, for people. body: of a chat completion.
    """

    key: str
    where: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ReferenceAnswer:
    """What the reference answered. finish_reason: in OpenAI's words."""

    text: str
    finish_reason: str


@dataclass(slots=True)
class Labelled:
    """A suite whose labels are a reference's. without: inputs left without one, and why."""

    suite: Suite
    without: dict[str, str] = field(default_factory=dict)
    compared: int = 0
    agreeing: int = 0


class Labeller:
    """Asks one reference for the labels of one task's inputs. task: bound to any model."""

    def __init__(self, reference: str, task: Task) -> None:
        self._reference = reference
        self._task = task

    def questions(self, suite: Suite) -> list[Question]:
        """Return a request for each input, in their order. Raises InvalidSuite."""
        return [self._question(suite, example) for example in suite.examples]

    def labelled(self, suite: Suite, answers: Mapping[str, ReferenceAnswer]) -> Labelled:
        """Return the suite with the reference's labels, without the inputs that got none.

        answers: by the questions' keys.
        """
        found, kept = Labelled(suite), []
        for example in suite.examples:
            question = self._question(suite, example)
            answer = answers.get(question.key)
            if answer is None:
                found.without[question.where] = "it was not answered"
                continue
            label = self._label(example.request, answer)
            if label is None:
                found.without[question.where] = (
                    f"the answer holds no label: {_shown(answer.text)}, finish_reason "
                    f"{answer.finish_reason!r}"
                )
                continue
            if example.labelled_by == "suite":
                found.compared += 1
                found.agreeing += self._agrees(example, label)
            kept.append(replace(example, expected=label, labelled_by="reference"))
        found.suite = suite.holding(kept)
        return found

    def _question(self, suite: Suite, example: Example) -> Question:
        where = f"{suite.name}, {example.id!r}"
        try:
            prompt = frontier_prompt(self._task, example.request)
        except InvalidRequest as error:
            raise InvalidSuite(
                f"suite {where}: {error.message}", field=error.field, fix=error.fix
            ) from error
        body = {"model": self._reference, **prompt.body, "max_tokens": prompt.max_tokens}
        content = json.dumps(body, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        key = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:_KEY_CHARS]
        return Question(key, where, body)

    def _label(self, request: TaskRequest, answer: ReferenceAnswer) -> Expected | None:
        """Return an answer as a label; None where it is none, or is not whole."""
        try:
            read = read_frontier(self._task, request, answer.text, answer.finish_reason)
        except FrontierInvalidResponse:
            return None
        if not read.valid:
            return None
        match read.value:
            case str() as label:
                return label
            case Translation(text=text):
                return text
            case entities:
                return tuple(entity_pairs(entities))

    def _agrees(self, example: Example, label: Expected) -> bool:
        spec = self._task.spec
        if isinstance(label, tuple):
            return label == example.expected
        direction = (example.request.source_language, example.request.target_language)
        if spec.kind != "translation":
            return label == example.expected
        value = Translation(
            text=label,
            source_language=str(direction[0]),
            target_language=str(direction[1]),
            source_detected=False,
        )
        return loss_of(spec, value, example.expected) == 0.0


def record_of(reference: str, parts: Iterable[Labelled]) -> ReferenceLabels:
    """Return what an attestation says of a task's labels."""
    found = list(parts)

    def total(count: Callable[[Labelled], int]) -> int:
        return sum(count(one) for one in found)

    return ReferenceLabels(
        model=reference,
        n=total(lambda one: len(one.suite.examples)),
        left_out=total(lambda one: len(one.without)),
        compared=total(lambda one: one.compared),
        agreeing=total(lambda one: one.agreeing),
    )


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:59] + "…")
