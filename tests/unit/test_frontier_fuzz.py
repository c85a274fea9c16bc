"""A small fixed share of the provider fuzzer, and the inputs that it once found."""

from collections.abc import Iterator

import pytest

from ..fuzz.provider import Bench, Exchange, exchanges
from ..fuzz.rounds import run_once
from .frontier_kit import ANTHROPIC

FOUND = (
    Exchange(is_stream=True, place="then_zeros"),
    Exchange(is_stream=True, place="no_choices_key", event_noise=True),
    Exchange(ANTHROPIC, is_stream=True, place="then_zeros", form="floats"),
    Exchange(is_stream=True, place="growing", form="zeros"),
    Exchange(is_stream=True, end="early"),
    Exchange(form="absurd"),
    Exchange(form="beside", reasoning_tokens=20),
    Exchange(end="proxy", cut_seed=1),
    Exchange(end="silence", wait="Wed, 21 Oct 2026 07:28:00 +99999999999999"),
    Exchange(is_stream=True, hang_up_after=1, reasoning_tokens=20),
    Exchange(ANTHROPIC, is_stream=True, end="cut", cut_seed=3, hang_up_after=2),
)


@pytest.fixture(name="bench", scope="module")
def bench_fixture() -> Iterator[Bench]:
    with Bench() as bench:
        yield bench


@pytest.mark.parametrize("exchange", FOUND, ids=range(len(FOUND)))
def test_found_cases_stay_fixed(bench: Bench, exchange: Exchange) -> None:
    bench.hold(exchange)


def test_a_fixed_share_holds(bench: Bench) -> None:
    run_once("provider", exchanges(), bench.hold, seed=20261126, examples=30)
