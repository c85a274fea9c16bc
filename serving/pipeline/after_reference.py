"""Answers from the local model after the reference failed, where the settings allow that."""

import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

from serving.contracts.errors import NarrowgateError
from serving.contracts.evidence import ClaimState
from serving.contracts.exits import Attempt
from serving.contracts.frontier import attempts_of
from serving.evidence.standing import Mode, Standing
from serving.pipeline.audit_work import OF_THE_INPUT
from serving.pipeline.exit_recorder import Outcome, OutcomeStream, RequestRecord
from serving.pipeline.plan import TaskPlan

_ENDED = (ClaimState.SUSPENDED, ClaimState.WITHDRAWN)


async def until_content(
    stream: Outcome | OutcomeStream, record: RequestRecord
) -> Outcome | OutcomeStream:
    """Return a stream once its first content has arrived; its error where it fails before.

    An outcome that is already whole passes. Nothing is sent to the client meanwhile.
    """
    if isinstance(stream, Outcome):
        return stream
    (item,) = record.inputs
    item.serving = stream.served
    begun_s, held = time.monotonic(), list[dict[str, Any]]()
    try:
        async for event in stream.events:
            held.append(event)
            if _has_content(event):
                break
    except BaseException as error:  # cancellation too: the call must end; re-raised
        await _close(stream.events)
        if not isinstance(error, NarrowgateError):
            raise
        served = stream.served()
        attempt = Attempt(served.model, error.code, time.monotonic() - begun_s, served.usage)
        earlier = (*served.attempts, *attempts_of(error))
        error.__dict__["attempts"] = (*earlier, attempt)
        item.serving = None
        return Outcome(error)
    return replace(stream, events=_Held(held, stream.events))


def is_reference_failure(outcome: Outcome) -> bool:
    """Return whether the reference failed, and not because of the input."""
    error = outcome.content
    return isinstance(error, NarrowgateError) and not isinstance(error, OF_THE_INPUT)


def note_failed(outcome: Outcome, record: RequestRecord) -> None:
    """Record the reference's calls on the only input: they are part of what its answer took."""
    (item,) = record.inputs
    assert isinstance(outcome.content, NarrowgateError)
    item.closed = None
    for attempt in attempts_of(outcome.content):
        item.set_aside(attempt, item.reason or "shadow")


def answered_without_claim(plan: TaskPlan, standing: Standing) -> TaskPlan:
    """Return a plan with which the local model answers alone, after the reference failed.

    standing: that sent the request to the reference. After a claim was earned and ended, and for a
    text whose local answer was found wrong, the attested threshold guarantees nothing, either.
    """
    assert plan.standing is not None
    is_attested = standing.mode == "shadow" and standing.state not in _ENDED
    mode: Mode = "suite" if is_attested else "uncovered"
    alone = replace(plan.standing, mode=mode, action=None, claim=None)
    return replace(plan, local=True, escalate_on=frozenset(), standing=alone)


def _has_content(event: Mapping[str, Any]) -> bool:
    """Return whether an event holds a part of the answer, not only its head."""
    return any(
        choice.get("finish_reason")
        or any(value for name, value in (choice.get("delta") or {}).items() if name != "role")
        for choice in event.get("choices") or ()
    )


class _Held:
    """The events of a stream, of which the first were read already; closing it closes the call."""

    def __init__(self, held: list[dict[str, Any]], rest: AsyncIterator[dict[str, Any]]) -> None:
        self._held = held[::-1]
        self._rest = rest

    def __aiter__(self) -> "_Held":
        return self

    async def __anext__(self) -> dict[str, Any]:
        return self._held.pop() if self._held else await anext(self._rest)

    async def aclose(self) -> None:
        """Close the events."""
        await _close(self._rest)


async def _close(events: AsyncIterator[Any]) -> None:
    close = getattr(events, "aclose", None)
    if close is not None:
        await close()
