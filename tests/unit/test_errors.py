"""The error tree: complete table to HTTP, distinct codes, safe to pickle, Ray's errors mapped."""

import inspect
import pickle

import pytest
import ray.exceptions
import ray.serve.exceptions
from grpc.aio import AioRpcError

from serving.contracts import errors
from serving.contracts.errors import EngineFailure, ModelUnavailable, NarrowgateError, QueueFull
from serving.gateway.errors import STATUS, error_body, error_response
from serving.local.client import translate

CLASSES = [
    cls
    for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, NarrowgateError)
]


def test_the_table_has_every_class_and_no_other() -> None:
    assert set(STATUS) == set(CLASSES)


def test_codes_are_distinct() -> None:
    codes = [cls.code for cls in CLASSES]
    assert len(set(codes)) == len(codes)


def test_the_picture_at_the_top_has_every_class() -> None:
    assert errors.__doc__ is not None
    assert [cls.__name__ for cls in CLASSES if cls.__name__ not in errors.__doc__] == []


@pytest.mark.parametrize("cls", CLASSES)
def test_an_error_survives_pickling_whole(cls: type[NarrowgateError]) -> None:
    error = cls("it broke", field="input", fix="repair it", retry_after_s=2.5)
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(copy) is cls
    assert vars(copy) == vars(error)
    assert str(copy) == "it broke"


# The stack is fine and another request will pass: these wait for an operator.
UNAVAILABLE_FOR_LONG = {
    errors.ModelFailed,
    errors.BudgetExceeded,
    errors.FrontierNotConfigured,
    errors.FrontierQuotaExhausted,
}
# Another request may pass, but this one may have been paid for, or is late already.
NOT_TO_BE_REPEATED = {errors.FrontierTimeout, errors.DeadlineExceeded}


@pytest.mark.parametrize("cls", CLASSES)
def test_retryable_errors_have_a_retryable_status(cls: type[NarrowgateError]) -> None:
    if cls.retryable:
        assert STATUS[cls] in {429, 502, 503, 504}
    else:
        assert (
            STATUS[cls] not in {429, 503, 504} or cls in UNAVAILABLE_FOR_LONG | NOT_TO_BE_REPEATED
        )
    assert error_response(cls("x")).headers["x-should-retry"] == str(cls.retryable).lower()


@pytest.mark.parametrize("cls", CLASSES)
def test_an_error_of_a_new_class_has_the_status_of_the_class_above(
    cls: type[NarrowgateError],
) -> None:
    below = type("Below", (type("Between", (cls,), {}),), {})
    assert error_response(below("x")).status_code == STATUS[cls]


def test_retry_after_is_a_whole_number_of_seconds_and_at_least_one() -> None:
    assert error_response(QueueFull("full", retry_after_s=0.2)).headers["retry-after"] == "1"
    assert error_response(QueueFull("full", retry_after_s=2.1)).headers["retry-after"] == "3"


def test_the_body_has_the_openai_shape() -> None:
    body = error_body(errors.EmptyInput("empty", field="input", fix="fill it"))
    assert body == {
        "message": "empty",
        "type": "invalid_request_error",
        "param": "input",
        "code": "empty_input",
        "fix": "fill it",
    }


def _ray_errors() -> list[type[Exception]]:
    found = []
    for module in (ray.exceptions, ray.serve.exceptions):
        for _, cls in inspect.getmembers(module, inspect.isclass):
            if issubclass(cls, Exception) and cls.__module__ == module.__name__:
                found.append(cls)
    return found


@pytest.mark.parametrize("cls", _ray_errors())
def test_every_ray_error_is_mapped(cls: type[Exception]) -> None:
    # Bypasses constructors, which differ from class to class; the mapping looks at types.
    error = cls.__new__(cls)
    if isinstance(error, ray.exceptions.RayTaskError):
        error.cause = ValueError("inside")
    mapped = translate(error)
    assert isinstance(mapped, NarrowgateError)
    assert "inside" not in mapped.message


def test_a_lost_replica_is_unavailable() -> None:
    for cls in (ray.exceptions.ActorDiedError, ray.exceptions.ActorUnavailableError, AioRpcError):
        assert isinstance(translate(cls.__new__(cls)), ModelUnavailable)


def test_our_own_error_comes_back_as_itself() -> None:
    inner = QueueFull("full", retry_after_s=3)
    wrapped = ray.exceptions.RayTaskError.__new__(ray.exceptions.RayTaskError)
    wrapped.cause = inner
    assert translate(wrapped) is inner


def test_a_bug_in_the_replica_does_not_show_its_text() -> None:
    wrapped = ray.exceptions.RayTaskError.__new__(ray.exceptions.RayTaskError)
    wrapped.cause = KeyError("secret prompt")
    mapped = translate(wrapped)
    assert isinstance(mapped, EngineFailure)
    assert "secret" not in mapped.message
