"""Decides whether a prompt is one of the tasks, and with which input: rules and learned heads."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from serving.contracts.answer import TaskRequest
from serving.contracts.routing import KnownVector
from serving.contracts.task_spec import (
    ClassificationSpec,
    ExtractionSpec,
    TaskSpec,
    TranslationSpec,
)
from serving.embedding.embedder import Embedder, Vector
from serving.routing.answer_form import answer_form, may_name_form
from serving.routing.clause_head import ClauseReading
from serving.routing.clause_rules import clause_obstacle, evidence_obstacle
from serving.routing.clauses import Normaliser
from serving.routing.closed_request import closed_task, load_rules, unexplained_part
from serving.routing.closed_vocabulary import CLOSED_TASKS, asks, names_text
from serving.routing.conversation import Prompt, is_persona
from serving.routing.foreign_output import (
    foreign_output,
    may_hold_instruction,
    names_several_texts,
)
from serving.routing.heads import NONE, RouterModel
from serving.routing.labels import named_labels, overlapping_labels
from serving.routing.languages import direction, mentions_language
from serving.routing.payload import (
    GAP,
    LANGUAGE_FIELDS,
    MAX_INSTRUCTION_CHARS,
    Beginning,
    Split,
    beginnings,
    begins_with_field,
    further_splits,
    holds_list,
    only_names,
    quote_at_start,
    split_message,
)
from serving.routing.vocabulary import unknown_words
from serving.routing.worked_examples import WorkedExamples, worked_examples


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


_KNOWN_PROMPTS = 64
# "Classify: …" before a text that a last line follows.
_HEADED = re.compile(r"[^\W\d_]{3,20}\s?:\s")
# A last paragraph that goes on with what came before the text: "and shorten it first".
_CONTINUED = re.compile(
    # The last blank line before the word alone: from each one it takes quadratic time.
    r"\n[^\S\n]*\n(?:and|then|but|plus|also|und|dann|aber|et|puis|mais|y|luego|pero)\b"
    r"[^\n]*+\s*+\Z"
)
# Words before a text that are no order: more are its own.
_MAX_LEAD_WORDS = 8
# An order is looked for in this much of a payload's beginning and end.
_SEARCHED_CHARS = 300


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
        self._normaliser = Normaliser(specs)
        load_rules()
        # `vectors` and `detect` ask about the same prompt, one after the other.
        self._known = lru_cache(maxsize=_KNOWN_PROMPTS)(self._by_clauses)
        # `_begun` reads the instructions that are among the readings.
        self._known_reading = lru_cache(maxsize=_KNOWN_PROMPTS)(self._read_instruction)

    async def vectors(self, prompt: Prompt, known: KnownVector | None = None) -> dict[str, Vector]:
        """Return the vectors that `detect` needs, by text. Raises the embedder's errors.

        known: of texts that were embedded before.
        """
        if self.by_clauses(prompt).request is not None:
            return {}
        known = known or nothing_known
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
        by_clauses = self.by_clauses(prompt)
        if by_clauses.request is not None:
            return by_clauses
        if _orders(prompt.system):
            return self._by_system(prompt, vectors)
        splits = split_message(prompt.user)
        return self._among([(split.instruction, split) for split in splits], vectors)

    def by_clauses(self, prompt: Prompt) -> Detection:
        """Return the task that the clause head reads in a prompt, or none. Needs no vector."""
        return self._known(prompt)

    def _by_clauses(self, prompt: Prompt) -> Detection:
        if self._model.clauses is None:
            return Detection(None, 1.0, "no clause head")
        if _orders(prompt.system):
            return self._clauses_of_system(prompt)
        if (examples := worked_examples(prompt.user)) is not None:
            return self._by_examples(examples)
        because, found, marked = "no payload found", list[Detection](), list[Detection]()
        begun = self._begun(prompt.user)
        weak = {one.split for one in begun if one.weak}
        first = split_message(prompt.user)
        texts = [one.payload for one in first if one.marked and len(one.payload.split()) > 1]
        splits = (
            *first,
            *further_splits(prompt.user),
            *(one.split for one in begun),
        )
        for split in dict.fromkeys(splits):
            if not split.marked and any(text in split.instruction for text in texts):
                # What marks hold is the text, no part of the order.
                continue
            match = self._read(split.instruction)
            if isinstance(match, str):
                because = match
            elif not split.marked and (
                _HEADED.match(split.payload)
                if split.instruction.startswith(GAP.strip())
                else self._orders_inside(split.payload)
            ):
                because = f"{match.task}, but the text may hold an instruction"
            elif not split.marked and (inside := mixed(split.payload, weak=split in weak)):
                because = f"{match.task}, but {inside}"
            else:
                detection = _detection(match, split)
                because = detection.because
                found += [detection] if detection.request else []
                marked += [detection] if detection.request and split.marked else []
        if len(marked) == 1 and _innermost(found).request is not None:
            return marked[0]
        return _innermost(found) if found else Detection(None, 1.0, because)

    def _by_examples(self, examples: WorkedExamples) -> Detection:
        """Read what the fields of worked examples ask for; what precedes them asks for the same."""
        match = self._read(examples.order.instruction)
        led = self._read(examples.lead + GAP) if examples.lead else ""
        if isinstance(led, _Match) and not isinstance(match, str):
            if (match.task, match.target) != (led.task, led.target):
                return Detection(None, 0.5, "the examples answer another question")
            match = replace(match, labels=led.labels or match.labels)
        elif examples.lead:
            # "Label each text." or "Output: positive": only both together say what is asked for.
            match = self._read(f"{examples.lead}\n{examples.order.instruction}")
        if isinstance(match, str):
            return Detection(None, 1.0, match)
        return _detection(match, examples.order)

    def _begun(self, message: str) -> list[Beginning]:
        """Return the readings whose text follows the request: what is added to one asks, too.

        Behind a request and a colon the text begins, unless a list of labels stands there.
        """
        begun: list[Beginning] = []
        request: str | None = None
        ends_in_colon = False
        for one in beginnings(message):
            instruction = one.split.instruction.removesuffix(GAP.strip()).rstrip()
            if request is not None:
                added = self._normaliser.clauses(instruction.removeprefix(request))
                if ends_in_colon and not any("§" in clause for clause in added):
                    break
                if not added or not all(asks(clause) for clause in added):
                    break
            begun.append(one)
            if request is not None or not isinstance(self._read(one.split.instruction), str):
                request, ends_in_colon = instruction, instruction.endswith(":")
        return begun

    def _contradiction(self, instruction: str, task: str) -> str | None:
        """Return what is not explained in an instruction for a task with a closed vocabulary.

        None for another task, such as one of the user's own.
        """
        if task not in CLOSED_TASKS:
            return None
        clauses = self._normaliser.clauses(instruction)
        return unexplained_part(clauses, task) or clause_obstacle(clauses, task)

    def _orders_inside(self, payload: str) -> bool:
        """Return whether an unmarked payload's first or last clause asks, or its end goes on."""
        if _CONTINUED.search(payload):
            return True
        head = self._model.clauses
        clauses = self._normaliser.clauses(payload[:_SEARCHED_CHARS])
        ends = [*clauses[:1], *self._normaliser.clauses(payload[-_SEARCHED_CHARS:])[-1:]]
        return head is not None and any(
            (reading := head.read([clause], list(self._specs))) is not None
            and reading.certainty >= head.least
            for clause in ends
        )

    def _clauses_of_system(self, prompt: Prompt) -> Detection:
        match = self._read(prompt.system)
        if isinstance(match, str):
            return Detection(None, 1.0, match)
        readings = (*split_message(prompt.user), *further_splits(prompt.user))
        inner = [
            (split, read)
            for split in readings
            if not only_names(split.instruction)
            and not isinstance(read := self._read(split.instruction), str)
        ]
        if not inner:
            bare = [split for split in readings if only_names(split.instruction)]
            whole = Split("", prompt.user.strip(), marked=True)
            return _detection(match, bare[0] if len(bare) == 1 else whole)
        if len(inner) > 1 or (inner[0][1].task, inner[0][1].target) != (match.task, match.target):
            return Detection(None, 0.5, "system and user message ask for different things")
        return _detection(match, inner[0][0])

    def _read(self, instruction: str) -> _Match | str:
        """Return the task of an instruction by its clauses, or why there is none."""
        return self._known_reading(instruction)

    def _read_instruction(self, instruction: str) -> _Match | str:
        if len(instruction) <= MAX_INSTRUCTION_CHARS and may_name_form(instruction):
            for spec in self._specs.values():
                if not isinstance(spec, ClassificationSpec):
                    continue
                found = answer_form(instruction, spec)
                if found is None:
                    continue
                text, form = found
                match = self._read_words(text)
                if not isinstance(match, str) and match.task == spec.name:
                    return replace(match, labels=form.words(match.labels, spec))
        return self._read_words(instruction)

    def _read_words(self, instruction: str) -> _Match | str:
        head = self._model.clauses
        if head is None or len(instruction) > MAX_INSTRUCTION_CHARS:
            return f"an instruction of more than {MAX_INSTRUCTION_CHARS} characters"
        clauses = self._normaliser.clauses(instruction)
        task = closed_task(clauses, self._specs)
        if task.startswith("no "):
            return task
        reading = ClauseReading(task, 1.0, "")
        spec = self._specs[reading.task]
        if not isinstance(spec, ExtractionSpec) and _STRUCTURE.search(instruction):
            return f"{reading.task}, but a structure is given"
        obstacle = clause_obstacle(clauses, reading.task) or evidence_obstacle(
            clauses, instruction, spec
        )
        if obstacle is not None:
            return f"{reading.task}, but {obstacle}"
        checked = check(instruction, spec, None)
        if isinstance(checked, str):
            return f"{reading.task}, but {checked}"
        return _Match(
            reading.task, reading.certainty, checked.labels, checked.source, checked.target
        )

    async def _embedded(self, instructions: Iterable[str], known: KnownVector) -> dict[str, Vector]:
        texts = {embedded_part(text) for text in instructions if instruction_obstacle(text) is None}
        return {
            text: await self._embedder.embed(text) if (found := known(text)) is None else found
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
        if (obstacle := self._contradiction(instruction, task)) is not None:
            return _Verdict(None, 1.0, obstacle)
        certainty = self._model.task.certainty(probability)
        if task not in self._specs or certainty < self._certainty:
            return _Verdict(None, 1.0 - certainty, f"no task (perhaps {task}, {certainty:.2f})")
        checked = check(instruction, self._specs[task], self._model.vocabulary.get(task))
        if isinstance(checked, str):
            return _Verdict(None, 1.0, f"{task}, but {checked}")
        return _Verdict(
            _Match(task, certainty, checked.labels, checked.source, checked.target), 0.0
        )


# A form to be filled: {"sentiment": …, "score": …}, <label/>.
_STRUCTURE = re.compile(r"\{[^{}]{0,200}:|<[\w-]{1,30} ?/>|</[\w-]{1,30}>")
_ASKING_WORDS = 3
_INNER_FIELD = re.compile(
    r"(?:^|[.!?)\n] *)(?:text|texte?|texto|input|eingabe|headline|story|tweet|review|sentence|"
    r"satz|phrase|frase|artic(?:le|ulo)|artikel)\s?[:=] ",
    re.I,
)
# "English: …", a line of worked examples.
_LANGUAGE_FIELD = re.compile(rf"^[ \t]*(?:{LANGUAGE_FIELDS})[ \u00a0]?:", re.I | re.M)
# What is marked is the text, so what precedes it is a part of the request.
_MARKED = re.compile(r'</[A-Za-z][\w-]{0,30}>|"""|```')
_SEVERAL = re.compile(r"\S [/|] \S.* [/|] \S|(?:^|\s)(?:a|1)[.)] .*\s(?:b|2)[.)] ", re.I | re.S)
_COURTESY = re.compile(
    r"\b(?:thanks|thank you|thx|cheers|please|danke(?: schon| dir)?|bitte|vielen dank|"
    r"merci(?: beaucoup| d'avance)?|"
    r"s'il (?:te|vous) plaît|stp|svp|gracias|muchas gracias|por favor|porfa)[.! ]*$",
    re.I,
)


def mixed(payload: str, *, weak: bool) -> str | None:
    """Return why an unmarked text may hold a part of the request, or None.

    weak: only the end of a sentence tells it from the request.
    """
    first = re.split(r"(?<=[.!?:])\s", payload.strip(), maxsplit=1)[0]
    if weak and asks(" ".join(re.findall(r"[^\W\d_]+", first)[:_ASKING_WORDS])):
        return f"the text may begin with an order: {first[:30]!r}"
    if weak and _ORDER_HEADING.match(payload):
        return "the text begins with words and a colon"
    if (held := _held(payload)) is not None:
        return f"the text holds a {held}"
    if quote_at_start(payload) is not None:
        return "words follow a quotation"
    heading = re.match(r"([^\W\d_]{3,20})\s?: ", payload)
    if begins_with_field(payload) or (heading is not None and names_text(heading[1])):
        return "the text begins with a field"
    if payload.startswith("<"):
        return "the text begins with a tag"
    if _SEVERAL.search(payload[:_SEARCHED_CHARS]):
        return "several texts"
    if _LAST_QUOTATION.search(payload[-_MAX_LAST_CHARS:]):
        return "a quotation follows a sentence"
    if _COURTESY.search(payload[-_MAX_COURTESY_CHARS:]):
        return "the text ends in a courtesy"
    return None


def _held(payload: str) -> str | None:
    if _INNER_FIELD.search(payload[:_SEARCHED_CHARS]) or _LANGUAGE_FIELD.search(payload):
        return "field"
    return "marked text" if _MARKED.search(payload) else None


_MAX_COURTESY_CHARS = 40
# "Supply both: …" after a sentence.
_ORDER_HEADING = re.compile(r"(?:[^\W\d_]{2,20} ){1,3}?[^\W\d_]{2,20}\s?: ")
# 'Plus a short teaser. "…"': the marks say where the text begins.
_LAST_QUOTATION = re.compile(r"[.!?]\s+(?:\"[^\"]{4,}\"|[“„«][^“”„«»]{4,}[”“»])\s*$")
_MAX_LAST_CHARS = 1_000


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
    if (both := overlapping_labels(instruction, spec)) is not None:
        return f"two words for one label: {both!r}"
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


def nothing_known(_: str) -> Vector | None:
    """Implements KnownVector where nothing was embedded before."""
    return None


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


def _innermost(found: Sequence[Detection]) -> Detection:
    """Return the reading whose text every other one holds; none where two differ.

    What is around the innermost text was read as an instruction, so it is none of the text.
    """
    texts = [one.request.text for one in found if one.request is not None]
    least = min(range(len(texts)), key=lambda n: len(texts[n]))
    chosen = found[least].request
    agree = chosen is not None and all(
        one.request is not None
        and texts[least] in one.request.text
        and (one.request.task, one.request.target_language) == (chosen.task, chosen.target_language)
        for one in found
    )
    return found[least] if agree else Detection(None, 0.5, "two readings are possible")


def _detection(match: _Match, split: Split) -> Detection:
    if (obstacle := split_obstacle(split)) is not None:
        return Detection(None, 1.0, f"{match.task}, but {obstacle}")
    request = TaskRequest(match.task, split.payload, match.source, match.target)
    return Detection(
        request, match.probability, f"{match.task} {match.probability:.2f}", match.labels
    )
