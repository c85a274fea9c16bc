"""Decides whether a prompt is one of the tasks, and with which input: rules and a learned head."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from serving.contracts.answer import TaskRequest
from serving.contracts.task_spec import TaskSpec, TranslationSpec
from serving.embedding.embedder import Embedder, Vector
from serving.routing.conversation import Prompt, is_persona
from serving.routing.foreign_output import (
    foreign_output,
    may_hold_instruction,
    names_several_texts,
)
from serving.routing.heads import NONE, RouterModel
from serving.routing.labels import named_labels
from serving.routing.languages import direction, mentions_language
from serving.routing.payload import (
    GAP,
    MAX_INSTRUCTION_CHARS,
    Split,
    holds_list,
    only_names,
    split_message,
)
from serving.routing.vocabulary import unknown_words


@dataclass(frozen=True, slots=True)
class Detection:
    """The task of a prompt.

    request: None if it is not a task. certainty: probability of the task, or of no task. because:
    the rule or the scores. labels: the client's own word for each label that it named, by label;
    None where it named none.
    """

    request: TaskRequest | None
    certainty: float
    because: str
    labels: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class _Match:
    task: str
    probability: float
    labels: Mapping[str, str] | None = None
    source: str | None = None
    target: str | None = None


@dataclass(frozen=True, slots=True)
class _Verdict:
    """none: probability of no task. because: the rule against the most probable task."""

    match: _Match | None
    none: float
    because: str = ""


class NarrowDetector:
    """Finds the task of a prompt whose form allows one.

    certainty: the least probability of a task, in (0.5, 1].
    """

    def __init__(
        self,
        model: RouterModel,
        specs: Mapping[str, TaskSpec],
        embedder: Embedder,
        certainty: float,
    ) -> None:
        self._model = model
        self._specs = specs
        self._embedder = embedder
        self._certainty = certainty

    async def vectors(
        self, prompt: Prompt, known: Mapping[str, Vector] | None = None
    ) -> dict[str, Vector]:
        """Return the vectors that `detect` needs, by text. Raises the embedder's errors.

        known: of texts that are embedded already.
        """
        known = known or {}
        if not _orders(prompt.system):
            return await self._embedded(
                (split.instruction for split in split_message(prompt.user)), known
            )
        found = await self._embedded([prompt.system], known)
        if self._judge(prompt.system, found).match is None:
            return found
        inner = [split.instruction for split in split_message(prompt.user)]
        return found | await self._embedded((text for text in inner if not only_names(text)), known)

    def detect(self, prompt: Prompt, vectors: Mapping[str, Vector]) -> Detection:
        """Return the task of a prompt, or none. Pure. vectors: of the same prompt."""
        if _orders(prompt.system):
            return self._by_system(prompt, vectors)
        splits = split_message(prompt.user)
        return self._among([(split.instruction, split) for split in splits], vectors)

    async def _embedded(
        self, instructions: Iterable[str], known: Mapping[str, Vector]
    ) -> dict[str, Vector]:
        texts = {embedded_part(text) for text in instructions if instruction_obstacle(text) is None}
        return {
            text: known[text] if text in known else await self._embedder.embed(text)
            for text in sorted(texts)
        }

    def _by_system(self, prompt: Prompt, vectors: Mapping[str, Vector]) -> Detection:
        """Read the system message as the instruction and the user's as the payload or around it."""
        verdict = self._judge(prompt.system, vectors)
        if verdict.match is None:
            return Detection(None, verdict.none, verdict.because)
        inner = split_message(prompt.user)
        own = [
            (split, self._judge(split.instruction, vectors))
            for split in inner
            if not only_names(split.instruction)
        ]
        found = [(split, its.match) for split, its in own if its.match is not None]
        if not found:
            whole = Split("", prompt.user.strip(), marked=True)
            bare = [split for split in inner if only_names(split.instruction)]
            return _detection(verdict.match, bare[0] if len(bare) == 1 else whole)
        (split, match), *more = found
        agree = match.task == verdict.match.task and match.target == verdict.match.target
        if more or not agree:
            return Detection(None, 0.5, "system and user message ask for different things")
        return _detection(match, split)

    def _among(self, readings: list[tuple[str, Split]], vectors: Mapping[str, Vector]) -> Detection:
        if not readings:
            return Detection(None, 1.0, "no payload found")
        verdicts = [(split, self._judge(text, vectors)) for text, split in readings]
        found = [(split, verdict.match) for split, verdict in verdicts if verdict.match]
        if len(found) == 1:
            return _detection(found[0][1], found[0][0])
        if found:
            return Detection(None, 0.5, "two readings are possible")
        surest = min((verdict for _, verdict in verdicts), key=lambda verdict: verdict.none)
        return Detection(None, surest.none, surest.because)

    def _judge(self, instruction: str, vectors: Mapping[str, Vector]) -> _Verdict:
        """Return the task that an instruction asks for, if every rule allows it."""
        if (obstacle := instruction_obstacle(instruction)) is not None:
            return _Verdict(None, 1.0, obstacle)
        vector = vectors[embedded_part(instruction)]
        task, probability = most_probable(self._model.task.probabilities(vector, instruction))
        certainty = self._model.task.certainty(probability)
        if task not in self._specs or certainty < self._certainty:
            return _Verdict(None, 1.0 - certainty, f"no task (perhaps {task}, {certainty:.2f})")
        checked = check(instruction, self._specs[task], self._model.vocabulary.get(task))
        if isinstance(checked, str):
            return _Verdict(None, 1.0, f"{task}, but {checked}")
        return _Verdict(
            _Match(task, certainty, checked.labels, checked.source, checked.target), 0.0
        )


def _orders(system: str) -> bool:
    """Return whether a system message asks for something."""
    return bool(system) and not is_persona(system)


def most_probable(probabilities: Mapping[str, float]) -> tuple[str, float]:
    """Return the most probable task other than `none`, and its probability."""
    tasks = [name for name in probabilities if name != NONE]
    task = max(tasks, key=lambda name: probabilities[name])
    return task, probabilities[task]


@dataclass(frozen=True, slots=True)
class TaskDetails:
    """Details of a task that an instruction asks for. source, target: of a translation."""

    labels: Mapping[str, str] | None = None
    source: str | None = None
    target: str | None = None


def check(instruction: str, spec: TaskSpec, vocabulary: frozenset[str] | None) -> TaskDetails | str:
    """Return the details that an instruction asks for, or why the task's output does not match it.

    vocabulary: words of the task's instructions; None where they are not known.
    """
    naming = named_labels(instruction, spec)
    if len(naming.spelled) == 1:
        return f"only one label is named: {next(iter(naming.spelled.values()))!r}"
    if vocabulary is not None and (unknown := unknown_words(naming.rest, vocabulary)):
        return f"unknown words: {unknown[:3]}"
    if isinstance(spec, TranslationSpec):
        details = direction(instruction, spec.languages)
        return (
            "it does not name exactly one translation that is offered"
            if details is None
            else TaskDetails(None, details.source, details.target)
        )
    if mentions_language(instruction):
        return "a language is named"
    return TaskDetails(naming.spelled or None)


def instruction_obstacle(instruction: str) -> str | None:
    """Return why an instruction cannot ask for any task; None where it may."""
    if len(instruction) > MAX_INSTRUCTION_CHARS:
        return f"an instruction of more than {MAX_INSTRUCTION_CHARS} characters"
    if not embedded_part(instruction):
        return "no instruction"
    if (words := foreign_output(instruction)) is not None:
        return f"another output: {words!r}"
    return None


def split_obstacle(split: Split) -> str | None:
    """Return why a split must not be used with any task; None where it may be."""
    if holds_list(split.payload):
        return "several texts"
    if names_several_texts(split.instruction):
        return "several texts"
    if not split.marked and may_hold_instruction(split.payload):
        return "the text may hold an instruction"
    return None


def embedded_part(instruction: str) -> str:
    """Return the part of an instruction that is embedded for the head."""
    return instruction.replace(GAP.strip(), " ").strip(" \n:")


def _detection(match: _Match, split: Split) -> Detection:
    if (obstacle := split_obstacle(split)) is not None:
        return Detection(None, 1.0, f"{match.task}, but {obstacle}")
    request = TaskRequest(match.task, split.payload, match.source, match.target)
    return Detection(
        request, match.probability, f"{match.task} {match.probability:.2f}", match.labels
    )
