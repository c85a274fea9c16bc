"""A small fixed share of what `make fuzz` does for minutes."""

from collections.abc import Iterator

import pytest

from ..fuzz import cli
from ..fuzz import http as http_fuzz
from ..fuzz.http import Request, Send, check_response
from ..fuzz.rounds import run_once

SEED = 20_261_126


@pytest.fixture(scope="module")
def application() -> Iterator[tuple[dict[str, object], Send]]:
    with http_fuzz.scripted() as served:
        yield served


def test_generated_requests_get_a_documented_response(
    application: tuple[dict[str, object], Send],
) -> None:
    document, send = application
    for strategy, holds in http_fuzz.checks(document, send):
        run_once("http-unit", strategy, holds, SEED, examples=25)


def test_an_undocumented_response_is_found(application: tuple[dict[str, object], Send]) -> None:
    _, send = application
    request = Request("GET", "/v1/none")
    response = send(request)
    check_response(request, response)
    response.status_code = 500
    with pytest.raises(AssertionError, match="500"):
        check_response(request, response)


def test_generated_arguments_end_with_a_documented_status() -> None:
    for strategy, holds in cli.checks(cli.SLOW):
        run_once("cli-unit", strategy, holds, SEED, examples=25)
