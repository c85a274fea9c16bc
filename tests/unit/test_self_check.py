"""Self-checks of cheaper answers, and what a cascade is expected to cost."""

import math
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.contracts.evidence import Claim, ClaimState, Scope
from serving.contracts.prices import TokenPrices
from serving.contracts.requests import ChatRequest, Message
from serving.evidence.statistics.judged import judged_pair
from serving.pipeline.self_check import (
    agreement,
    checked_request,
    is_checkable,
    token_confidence,
    without_logprobs,
)
from serving.tiers.policy import Rung, Traffic, cascade_prospect, cascade_usd, is_cascade_open
from serving.tiers.shortcut import cascade_loss

from .evidence_kit import AT

TRAFFIC = Traffic(1_000, 1.0, 300.0, 500.0)


def rung(output_usd: str) -> Rung:
    price = Decimal(output_usd) / 1_000_000
    return Rung("economy", "a/b", TokenPrices(price / 5, price / 50, price, price, price))


LARGE, SMALL = rung("25"), rung("5")


def document(logprobs: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": "a b"}
    return {"choices": [{"index": 0, "message": message, "logprobs": logprobs}]}


def test_the_confidence_is_the_geometric_mean_of_the_tokens_probabilities() -> None:
    tokens = [{"token": t, "logprob": math.log(p)} for t, p in (("a", 0.9), ("b", 0.4))]
    assert token_confidence(document({"content": tokens})) == pytest.approx(0.6)
    assert without_logprobs(document({"content": tokens})) == document(None)


@pytest.mark.parametrize(
    "logprobs",
    [
        None, {}, {"content": None}, {"content": []}, {"content": "no list"}, [],
        {"content": [{"token": "a"}]}, {"content": [{"logprob": "-0.1"}]}, {"content": [7]},
        {"content": [{"logprob": float("nan")}]}, {"content": [{"logprob": float("-inf")}]},
        {"content": [{"logprob": 5}]}, {"content": [{"logprob": -1}, {"logprob": 1e38}]},
        {"content": [{"logprob": -(10**400)}]}, {"content": [{"logprob": False}]},
    ],
)  # fmt: skip
def test_log_probabilities_that_cannot_be_read_are_no_confidence(logprobs: Any) -> None:
    assert token_confidence(document(logprobs)) is None


async def test_answers_agree_by_rule_else_by_their_vectors() -> None:
    seen: list[str] = []

    async def embed(text: str) -> NDArray[np.float32]:
        seen.append(text)
        return np.array([1.0, 0.0] if "yes" in text else [0.6, 0.8], np.float32)

    assert await agreement("It is fine.", "It is fine", embed) == 1.0
    assert await agreement("It is 12.", "It is 13.", embed) == 0.0
    assert seen == []
    assert await agreement("yes, of course", "rather not", embed) == pytest.approx(0.6)
    assert await agreement("yes " * 2_000, "no " * 2_000, embed) == pytest.approx(0.6)
    assert max(map(len, seen)) == 2_000


@pytest.mark.parametrize(
    ("fields", "samples", "logprobs"),
    [
        ({}, True, True), ({"temperature": 0.7}, True, True), ({"temperature": 0}, False, True),
        ({"seed": 0}, False, True), ({"tools": [{}]}, False, False),
        ({"functions": [{}]}, False, False), ({"logprobs": True}, False, False),
    ],
)  # fmt: skip
def test_what_can_be_checked(fields: dict[str, Any], samples: bool, logprobs: bool) -> None:
    request = ChatRequest("auto", (Message("user", "x"),), fields=fields, stream=True)
    assert is_checkable(request, "samples") is samples
    assert is_checkable(request, "logprobs") is logprobs
    assert not checked_request(request, "samples").stream
    assert checked_request(request, "logprobs").fields["logprobs"] is True


def test_the_loss_of_a_cascade_lets_no_better_answer_pay_for_a_worse_one() -> None:
    assert cascade_loss(judged_pair("badly_worse", "worse")) == 1.0
    assert cascade_loss(judged_pair("worse", "same")) == 0.5
    # A judge that prefers the first place.
    assert cascade_loss(judged_pair("better", "worse")) == 0.0
    assert cascade_loss(judged_pair("better", "better")) == 0.0


def test_the_expected_cost_has_both_calls_and_the_audits() -> None:
    full, fifth = TRAFFIC.cost_usd(LARGE.prices), TRAFFIC.cost_usd(SMALL.prices)
    assert cascade_usd(TRAFFIC, (LARGE, SMALL), 2, 0.6) == pytest.approx(2 * fifth + 0.4 * full)
    assert cascade_usd(TRAFFIC, (LARGE, SMALL), 1, 0.0) > full
    audited = cascade_usd(TRAFFIC, (LARGE, SMALL), 2, 0.6, audit_usd=full)
    assert audited == pytest.approx(2 * fifth + full)
    found = cascade_prospect("c", TRAFFIC, (LARGE, None, SMALL), SMALL.prices, None, 2)
    assert found.saving_usd == pytest.approx(full - 2 * fifth - 0.5 * full)
    assert found.pair_usd == pytest.approx(2 * fifth + TRAFFIC.judging_usd(SMALL.prices))


@pytest.mark.parametrize(
    ("state", "audits", "hypotheses", "is_open"),
    [
        (ClaimState.SHADOW, 0, 0, True), (ClaimState.SHADOW, 599, 0, True),
        (ClaimState.SHADOW, 600, 0, False), (ClaimState.SHADOW, 600, 1, True),
        (ClaimState.SHADOW, 1_500, 1, False), (ClaimState.HELD, 10, 1, False),
        (ClaimState.WITHDRAWN, 10, 1, False), (ClaimState.SUSPENDED, 10, 1, True),
    ],
)  # fmt: skip
def test_a_cascade_is_given_up_when_no_threshold_is_placed(
    state: ClaimState, audits: int, hypotheses: int, is_open: bool
) -> None:
    claim = Claim(
        "c", Scope("t", "cluster/0/economy/cascade"), "cascade", "not_equivalent", 0.1, "a/b",
        state, AT, audits=audits, hypotheses=hypotheses,
    )  # fmt: skip
    assert is_cascade_open(claim) is is_open
    assert is_cascade_open(None)
