"""Asks a cheaper model first, and keeps its answer where its self-check is above a threshold."""

import asyncio
import time
from dataclasses import dataclass, replace
from typing import Any

from serving.contracts.errors import FrontierRejected, NarrowgateError
from serving.contracts.exits import Attempt
from serving.contracts.requests import ChatRequest
from serving.pipeline.auditor import Embed
from serving.pipeline.compared_text import answer_text
from serving.pipeline.exit_recorder import Outcome, RequestRecord
from serving.pipeline.plan import FrontierPlan
from serving.pipeline.runner import Runner
from serving.pipeline.self_check import (
    agreement,
    checked_request,
    token_confidence,
    without_logprobs,
)
from serving.tiers.planner import TierCandidate, TierPlanner


@dataclass(frozen=True, slots=True)
class Checked:
    """A cheaper model's answer with its self-check. outcome: None where none can be used.

    confidence: None where the check gave none. elapsed_s: that the client waited for it. attempts:
    calls whose answers are not used. failed: code of the error.
    """

    outcome: Outcome | None
    confidence: float | None
    elapsed_s: float
    attempts: tuple[Attempt, ...] = ()
    failed: str | None = None

    def is_kept(self, threshold: float) -> bool:
        """Return whether the answer is sent to the client."""
        return (
            self.outcome is not None
            and self.confidence is not None
            and self.confidence >= threshold
        )


class Cascade:
    """Asks the cheaper model of a cascade as clients are served. One for a process."""

    def __init__(
        self, runner: Runner[ChatRequest, FrontierPlan], planner: TierPlanner, embed: Embed
    ) -> None:
        self._runner = runner
        self._planner = planner
        self._embed = embed

    async def checked(
        self,
        request: ChatRequest,
        plan: FrontierPlan,
        candidate: TierCandidate,
        record: RequestRecord,
    ) -> Checked:
        """Return the cheaper model's answer and its self-check, within `tiers.cascade_wait_s`.

        Errors of the cheaper model and of the check are returned, not raised: the reference is
        asked then.
        """
        began_s = time.monotonic()
        model = candidate.rung.model
        asked = checked_request(request, candidate.check)
        plan = replace(plan, targets=(model,), reason="cascade")
        made: list[Outcome] = []
        confidence, failed = None, None
        try:
            async with asyncio.timeout(self._planner.settings.cascade_wait_s):
                made.append(await self._answer(asked, plan, record))
                if candidate.check == "samples":
                    made.append(await self._answer(asked, plan, record))
                    confidence = await agreement(_text(made[0]), _text(made[1]), self._embed)
                else:
                    confidence = token_confidence(_document(made[0]))
        except TimeoutError:
            failed = "cascade_wait_exceeded"
        except NarrowgateError as error:
            failed = error.code
            if isinstance(error, FrontierRejected) and candidate.check == "logprobs":
                self._note(model, is_given=False, is_refusal=True)
        elapsed_s = time.monotonic() - began_s
        if failed is None and candidate.check == "logprobs":
            self._note(model, is_given=confidence is not None)
        attempts = tuple(_attempt(model, one, elapsed_s) for one in made[1:])
        if failed is not None:
            attempts = (Attempt(model, failed, elapsed_s), *attempts)
        outcome = made[0] if made else None
        if outcome is not None and candidate.check == "logprobs":
            outcome = replace(outcome, content=without_logprobs(_document(outcome)))
        return Checked(outcome, confidence, elapsed_s, attempts, failed)

    def _note(self, model: str, *, is_given: bool, is_refusal: bool = False) -> None:
        cascades = self._planner.cascades
        if cascades is None:
            return
        if is_given:
            cascades.gave_logprobs(model)
        else:
            cascades.gave_no_logprobs(model, is_refusal=is_refusal)

    async def _answer(
        self, request: ChatRequest, plan: FrontierPlan, record: RequestRecord
    ) -> Outcome:
        (outcome,) = await self._runner.whole(request, plan, record)
        if isinstance(outcome.content, NarrowgateError):
            raise outcome.content
        return outcome


def set_aside(checked: Checked, model: str, record: RequestRecord) -> None:
    """Note on the request that the cheaper model's answer is not used."""
    attempts = checked.attempts
    if checked.outcome is not None:
        attempts = (_attempt(model, checked.outcome, checked.elapsed_s), *attempts)
    for item in record.inputs:
        for attempt in attempts:
            item.set_aside(attempt, "out_of_scope")


def _attempt(model: str, outcome: Outcome, elapsed_s: float) -> Attempt:
    usage = None if outcome.served is None else outcome.served.usage
    return Attempt(model, "below_threshold", elapsed_s, usage)


def _document(outcome: Outcome) -> dict[str, Any]:
    assert isinstance(outcome.content, dict)
    return outcome.content


def _text(outcome: Outcome) -> str:
    return answer_text(_document(outcome))
