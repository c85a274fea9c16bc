"""Why a request leaves the local model."""

from typing import get_args

from serving.contracts import errors
from serving.contracts.errors import NarrowgateError
from serving.contracts.routing import Reason
from serving.pipeline.escalating import is_among, reason_for_answer, reason_for_error

EXPECTED = {
    "QueueFull": "overload",
    "ModelStarting": "local_failure",
    "ModelPreparing": "local_failure",
    "ModelUnavailable": "local_failure",
    "ModelFailed": "local_failure",
    "EngineFailure": "local_failure",
    "DeadlineExceeded": "deadline_at_risk",
    "TaskNotAttested": "not_attested",
    "InputTooLong": "out_of_scope",
}


def _tree(cls: type[NarrowgateError]) -> set[type[NarrowgateError]]:
    return {cls}.union(*(_tree(child) for child in cls.__subclasses__()))


def test_every_error_of_the_tree_has_its_reason_or_none() -> None:
    tree = {cls for cls in _tree(NarrowgateError) if cls.__module__ == errors.__name__}
    assert set(EXPECTED) <= {cls.__name__ for cls in tree}
    for cls in tree:
        assert reason_for_error(cls("failed")) == EXPECTED.get(cls.__name__), cls.__name__
    assert set(EXPECTED.values()) <= set(get_args(Reason))


def test_an_unreadable_answer_counts_before_an_unsure_one() -> None:
    assert reason_for_answer(True, valid=False) == "invalid_output"
    assert reason_for_answer(True, valid=True) == "below_threshold"
    assert reason_for_answer(False, valid=True) is None
    assert reason_for_answer(None, valid=True) is None


def test_a_label_that_the_client_did_not_offer_is_told() -> None:
    named = {"positive": "pos", "negative": "neg"}
    assert is_among("positive", named)
    assert not is_among("neutral", named)
    assert is_among("neutral", None)
    assert is_among((), named)
