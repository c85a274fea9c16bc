"""Orders answers of a reference model from a gateway's batches, over HTTP, and keeps them.

Answers are paid for: each is kept in a file, and a batch that was ordered is noted before it is
ordered. A later run takes up what an interrupted one has ordered, and asks only for the rest.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any
from uuid import uuid4

from evals.listing import first_of
from evals.reference_labels import Question, ReferenceAnswer
from serving.contracts.batch import FINAL_STATUSES
from serving.contracts.errors import (
    EvaluationFailed,
    NarrowgateError,
    NotFound,
    OutputInUse,
    Unavailable,
)
from serving.host.batch_client import BatchClient
from serving.host.progress import StepObserver
from serving.host.safe_write import replace_file

_ENDPOINT = "/v1/chat/completions"
_WINDOW = "24h"
_MARK = "narrowgate_gate"
"""Metadata of a batch: the name of the order that it is."""

_SHOWN = 5
_PAGES = 20
_PAGE = 100
_AGAIN = "run the same command again: it asks only for what is missing"


@dataclass(frozen=True, slots=True)
class Pacing:
    """How often a batch is asked for, and how long an outage is waited for, seconds."""

    first_s: float = 2.0
    slowest_s: float = 15.0
    outage_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Order:
    """A batch that was ordered. name: in its metadata. batch: None while it may not exist.

    url: of the gateway, for people. keys: of its questions, in the order of its lines.
    """

    name: str
    url: str
    keys: tuple[str, ...]
    batch: str | None = None


@dataclass(slots=True)
class Bought:
    """What a run found. answers: by key. failed: why others have none. batches: that this run took
    in. paid_usd: their cost; None where one does not say it. reused: answers that were there.
    """

    answers: dict[str, ReferenceAnswer] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    batches: list[str] = field(default_factory=list)
    paid_usd: Decimal | None = Decimal(0)
    reused: int = 0


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run would order. asked, ordered, reused: distinct inputs that would be asked, were
    ordered by an interrupted run, and were answered. max_usd: the most that those asked can cost;
    batch_usd: in the provider's batch. None where a price or the batch API is missing.
    """

    asked: int
    ordered: int
    reused: int
    max_usd: Decimal | None
    batch_usd: Decimal | None


class AnswerFolder:
    """The answers of one reference and its open orders, in files. Every method is blocking."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._answers = folder / "answers.jsonl"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Refuse a second process: both would pay for the same. Raises OutputInUse."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise OutputInUse(
                    f"another gate is ordering labels of the same reference in "
                    f"{str(self.folder)!r}",
                    field="reference",
                    fix="wait for it; then this command takes its labels over",
                ) from error
            yield

    def answers(self) -> dict[str, ReferenceAnswer]:
        """Return the answers by key. A line that a crash cut off is left out."""
        found = {}
        with suppress(FileNotFoundError):
            for line in self._answers.read_bytes().split(b"\n"):
                with suppress(ValueError, KeyError, TypeError):
                    row = json.loads(line)
                    found[str(row["key"])] = ReferenceAnswer(row["text"], row["finish_reason"])
        return found

    def keep(self, answers: Mapping[str, ReferenceAnswer]) -> None:
        """Append answers; they are on disk when this returns."""
        rows = [
            json.dumps({"key": key, "text": one.text, "finish_reason": one.finish_reason})
            for key, one in answers.items()
        ]
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        with os.fdopen(os.open(self._answers, flags, 0o600), "w", encoding="utf-8") as file:
            # The first new line ends one that a crash cut off.
            file.write("\n" + "".join(row + "\n" for row in rows))
            file.flush()
            os.fsync(file.fileno())

    def orders(self) -> list[Order]:
        """Return the orders that were not taken in yet. Raises EvaluationFailed."""
        found = []
        for path in sorted(self.folder.glob("order-*.json")):
            try:
                row = json.loads(path.read_text(encoding="utf-8"))
                found.append(Order(row["name"], row["url"], tuple(row["keys"]), row["batch"]))
            except (ValueError, KeyError, TypeError) as error:
                raise EvaluationFailed(
                    f"{str(path)!r} is not an order: {type(error).__name__}",
                    field="reference",
                    fix="delete the file; what it ordered may be paid for again",
                ) from error
        return found

    def note(self, order: Order) -> None:
        """Write an order, in place of what was known of it."""
        row = {"name": order.name, "url": order.url, "keys": order.keys, "batch": order.batch}
        replace_file(self.path(order), json.dumps(row).encode())

    def settle(self, order: Order) -> None:
        """Forget an order whose answers are kept."""
        self.path(order).unlink(missing_ok=True)

    def path(self, order: Order) -> Path:
        """Return the file of an order."""
        return self.folder / f"order-{order.name}.json"


class LabelOrders:
    """Buys answers of one reference. client: of the gateway at `url`.

    max_cost_usd: of one batch; None without a limit. Raises NarrowgateErrors; blocking, up to a
    day.
    """

    def __init__(
        self,
        reference: str,
        folder: AnswerFolder,
        client: BatchClient,
        url: str,
        observer: StepObserver,
        max_cost_usd: str | None = None,
        pacing: Pacing | None = None,
    ) -> None:
        self._reference = reference
        self._folder = folder
        self._client = client
        self._url = url
        self._observer = observer
        self._max_cost_usd = max_cost_usd
        self._pacing = pacing or Pacing()
        self._where: dict[str, str] = {}

    def bought(self, questions: Sequence[Question]) -> Bought:
        """Return the answers to questions, those that were kept and those of a new batch."""
        wanted = {question.key: question for question in questions}
        self._where = {key: question.where for key, question in wanted.items()}
        with self._folder.locked():
            kept = self._folder.answers()
            found = Bought(reused=sum(key in kept for key in wanted))
            for order in self._folder.orders():
                if any(key in wanted and key not in kept for key in order.keys):
                    self._take_in(self._resumed(order), found, is_new=False)
                    kept = self._folder.answers()
            missing = [question for key, question in wanted.items() if key not in kept]
            if missing:
                self._take_in(self._ordered(missing), found, is_new=True)
                kept = self._folder.answers()
            found.answers = {key: kept[key] for key in wanted if key in kept}
            found.failed = {key: why for key, why in found.failed.items() if key not in kept}
            return found

    def estimate(self, questions: Sequence[Question]) -> Estimate:
        """Return what `bought` would order, checked by the gateway; nothing is spent.

        Raises EvaluationFailed where the gateway would refuse it.
        """
        wanted = {question.key: question for question in questions}
        self._where = {key: question.where for key, question in wanted.items()}
        with self._folder.locked():
            kept = self._folder.answers()
            open_orders = {key for order in self._folder.orders() for key in order.keys}
            missing = [
                question
                for key, question in wanted.items()
                if key not in kept and key not in open_orders
            ]
            reused = sum(key in kept for key in wanted)
            ordered = len(wanted) - reused - len(missing)
            if not missing:
                return Estimate(0, ordered, reused, Decimal(0), None)
            order = Order(uuid4().hex, self._url, tuple(question.key for question in missing))
            file_id = self._uploaded(order, missing)
            try:
                found = self._client.check(self._terms(order, file_id))
            finally:
                self._client.delete_file(file_id)
        if (found.get("errors") or {}).get("data"):
            raise EvaluationFailed(
                f"the gateway would refuse the batch: {self._refused(order, found)}",
                field="reference",
                fix="correct what the gateway names; nothing was paid",
            )
        plan = found.get("plan") or []
        return Estimate(
            len(missing), ordered, reused, _sum(plan, "max_usd"), _sum(plan, "batch_usd")
        )

    # Orders.

    def _ordered(self, questions: Sequence[Question]) -> Order:
        """Order a batch. The intent is on disk before the call, and the batch's id after it."""
        order = Order(uuid4().hex, self._url, tuple(question.key for question in questions))
        file_id = self._uploaded(order, questions)
        self._folder.note(order)
        try:
            batch = self._client.create(self._terms(order, file_id))
        except Unavailable:
            # It may have been created: the next run asks for it by its metadata.
            raise
        except NarrowgateError:
            self._folder.settle(order)
            self._client.delete_file(file_id)
            raise
        return self._identified(order, batch)

    def _uploaded(self, order: Order, questions: Sequence[Question]) -> str:
        lines = self._folder.folder / f"order-{order.name}.jsonl"
        try:
            with lines.open("w", encoding="utf-8") as file:
                for one in questions:
                    line = {
                        "custom_id": one.key, "method": "POST", "url": _ENDPOINT,
                        "body": one.body,
                    }  # fmt: skip
                    file.write(json.dumps(line) + "\n")
            self._step(f"uploading {len(questions)} inputs")
            return self._client.upload(lines, lambda done, total: None)
        finally:
            lines.unlink(missing_ok=True)

    def _terms(self, order: Order, file_id: str) -> dict[str, Any]:
        metadata = {_MARK: order.name, "purpose": "gate"}
        if self._max_cost_usd is not None:
            metadata["max_cost_usd"] = self._max_cost_usd
        return {
            "input_file_id": file_id, "endpoint": _ENDPOINT, "completion_window": _WINDOW,
            "metadata": metadata,
        }  # fmt: skip

    def _resumed(self, order: Order) -> Order:
        """Return an order with its batch, where an interrupted run has created it."""
        if order.batch is not None:
            return order
        self._step("looking for the batch of an interrupted run")
        batch = self._marked(order.name)
        return order if batch is None else self._identified(order, batch)

    def _marked(self, name: str) -> dict[str, Any] | None:
        after = None
        for _ in range(_PAGES):
            page = self._client.batches(_PAGE, after)
            for batch in page["data"]:
                if (batch.get("metadata") or {}).get(_MARK) == name:
                    return dict(batch)
            if not page.get("has_more") or not page["data"]:
                return None
            after = page["data"][-1]["id"]
        return None

    def _identified(self, order: Order, batch: Mapping[str, Any]) -> Order:
        order = Order(order.name, order.url, order.keys, str(batch["id"]))
        self._folder.note(order)
        return order

    # Answers.

    def _take_in(self, order: Order, found: Bought, *, is_new: bool) -> None:
        """Wait for a batch and keep its answers. Raises EvaluationFailed where it was stopped."""
        if order.batch is None:
            # The interrupted run has not created it: nothing was paid.
            self._folder.settle(order)
            return
        batch, was_waited_for = self._ended(order)
        if batch["status"] == "failed":
            self._folder.settle(order)
            self._client.delete_file(str(batch.get("input_file_id")))
            raise EvaluationFailed(
                f"the gateway refused the batch {order.batch}: {self._refused(order, batch)}",
                field="reference",
                fix="correct what the gateway names; nothing was paid",
            )
        answers = self._read(order, batch, found)
        self._folder.keep(answers)
        self._folder.settle(order)
        found.batches.append(order.batch)
        cost = _usd((batch.get("narrowgate") or {}).get("cost_usd"))
        known = found.paid_usd is not None and cost is not None
        found.paid_usd = (found.paid_usd or Decimal(0)) + (cost or 0) if known else None
        # A batch that had been stopped before this run is not what this run waits for.
        if batch["status"] != "completed" and (is_new or was_waited_for):
            self._refuse_stopped(order, batch, len(answers))

    def _refuse_stopped(self, order: Order, batch: Mapping[str, Any], answered: int) -> None:
        # `expired` says the deadline; a `cancelled` one may have run into a budget: lines say so.
        raise EvaluationFailed(
            f"the batch {order.batch} is {batch['status']}: {answered} of {len(order.keys)} inputs "
            f"have labels, which are kept{self._why(order, batch)}",
            field="reference",
            fix=_AGAIN,
        )

    def _why(self, order: Order, batch: Mapping[str, Any]) -> str:
        failed: dict[str, str] = {}
        self._errors(batch, failed, order)
        reasons = [f"{self._where.get(key, key)}: {why}" for key, why in failed.items()]
        return f"; {first_of(reasons, _SHOWN)}" if failed else ""

    def _ended(self, order: Order) -> tuple[dict[str, Any], bool]:
        """Return the batch once it has ended, and whether it was waited for."""
        assert order.batch is not None
        batch = self._found(order)
        pause_s, answered = self._pacing.first_s, time.monotonic()
        was_waited_for = batch["status"] not in FINAL_STATUSES
        while batch["status"] not in FINAL_STATUSES:
            counts = batch.get("request_counts") or {}
            done = (counts.get("completed") or 0) + (counts.get("failed") or 0)
            self._step(
                f"waiting for labels: {done} of {len(order.keys)}",
                {
                    "batch": order.batch, "labels_done": done, "labels": len(order.keys),
                    "shown": f"{order.batch}, at most {_at_most(batch)}",
                },
            )  # fmt: skip
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.2, self._pacing.slowest_s)
            try:
                batch = self._client.batch(order.batch)
                answered = time.monotonic()
            except Unavailable as error:
                if time.monotonic() - answered > self._pacing.outage_s:
                    raise Unavailable(
                        error.message, field="batch",
                        fix=f"the batch {order.batch} goes on at the gateway; {_AGAIN}",
                    ) from error  # fmt: skip
        return batch, was_waited_for

    def _found(self, order: Order) -> dict[str, Any]:
        """Return an order's batch. Raises EvaluationFailed where the gateway does not know it."""
        assert order.batch is not None
        try:
            return self._client.batch(order.batch)
        except NotFound as error:
            raise EvaluationFailed(
                f"{self._url} does not know the batch {order.batch}, which was ordered from "
                f"{order.url}: {error.message}",
                field="batch",
                fix="name that gateway and its tenant's key; to pay for its labels again, delete "
                + str(self._folder.path(order)),
            ) from error

    def _read(
        self, order: Order, batch: Mapping[str, Any], found: Bought
    ) -> dict[str, ReferenceAnswer]:
        """Return a batch's answers; note in `found` why others are missing."""
        answers = {}
        for line in self._lines(order, batch.get("output_file_id")):
            key = line.get("custom_id")
            if key not in order.keys:
                continue
            try:
                body = line["response"]["body"]
                choice = body["choices"][0]
                text, model = choice["message"].get("content"), str(body["model"])
            except (KeyError, IndexError, TypeError, AttributeError):
                found.failed[key] = "its answer is not a chat completion"
                continue
            if model != self._reference:
                found.failed[key] = f"{model!r} answered in place of the reference"
                continue
            answers[key] = ReferenceAnswer(
                text if isinstance(text, str) else "", str(choice.get("finish_reason"))
            )
        self._errors(batch, found.failed, order)
        return answers

    def _errors(self, batch: Mapping[str, Any], failed: dict[str, str], order: Order) -> None:
        for line in self._lines(order, batch.get("error_file_id")):
            key = line.get("custom_id")
            if key in order.keys:
                failed[key] = _reason(line)

    def _lines(self, order: Order, file_id: object) -> Iterator[dict[str, Any]]:
        if not isinstance(file_id, str):
            return
        path = self._folder.folder / "results.jsonl"
        try:
            self._client.download(file_id, path, lambda done, total: None)
        except NotFound as error:
            raise EvaluationFailed(
                f"{self._url} no longer has the results of the batch {order.batch}: "
                f"{error.message}",
                field="batch",
                fix=f"to pay for its labels again, delete {self._folder.path(order)}",
            ) from error
        try:
            with path.open(encoding="utf-8", newline="\n") as lines:
                for line in lines:
                    document = json.loads(line)
                    if isinstance(document, dict):
                        yield document
        except ValueError as error:
            raise EvaluationFailed(
                f"{self._url} sent results that are not JSON Lines: {error}",
                field="batch",
                fix=_AGAIN,
            ) from error
        finally:
            path.unlink(missing_ok=True)

    # Words.

    def _refused(self, order: Order, batch: Mapping[str, Any]) -> str:
        problems = (batch.get("errors") or {}).get("data") or []
        listed = []
        for problem in problems:
            line = problem.get("line")
            is_line = isinstance(line, int) and 0 < line <= len(order.keys)
            where = f"line {line}" if line is not None else "the file"
            if is_line:
                key = order.keys[line - 1]
                where += f" ({self._where.get(key, key)})"
            listed.append(f"{where}: {problem.get('message')}")
        return first_of(listed, _SHOWN)

    def _step(self, name: str, details: Mapping[str, Any] | None = None) -> None:
        self._observer.step(name, details=details)


def _reason(line: Mapping[str, Any]) -> str:
    """Return why a line of an error file has no answer."""
    response, error = line.get("response"), line.get("error")
    if isinstance(response, dict):
        body = response.get("body")
        error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return "it failed without a reason"
    return f"{error.get('code')}: {error.get('message')}"


def _at_most(batch: Mapping[str, Any]) -> str:
    """Return the most that a batch may cost, in a provider's batch where that is known."""
    plan = (batch.get("narrowgate") or {}).get("plan") or []
    usd = _sum(plan, "batch_usd")
    usd = _sum(plan, "max_usd") if usd is None else usd
    return "an unknown cost" if usd is None else f"${usd:.2f}"


def _sum(plan: Sequence[Mapping[str, Any]], name: str) -> Decimal | None:
    """Return the sum of a cost over a plan's rows; None where one of them has none."""
    costs = [_usd(row.get(name)) for row in plan]
    known = [cost for cost in costs if cost is not None]
    return sum(known, Decimal(0)) if known and len(known) == len(costs) else None


def _usd(value: object) -> Decimal | None:
    try:
        return None if value is None else Decimal(str(value))
    except InvalidOperation:
        return None
