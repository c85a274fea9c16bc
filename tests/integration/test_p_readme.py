"""What README.md and docs/tasks.md show is run; test_a_attested.py has the README's part."""

import pytest

from ..built_in_tasks import BUILT_IN_TASKS
from .conftest import Stack
from .shown import README, TASKS, check, shown

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900)]


def test_there_is_a_curl_and_an_answer_for_each_task() -> None:
    asked = [curl for path in (README, TASKS) for curl, _ in shown(path)]
    for task in BUILT_IN_TASKS:
        assert any(f"/v1/tasks/{task}" in curl for curl in asked)


@pytest.mark.parametrize(("curl", "answer"), shown(TASKS))
def test_a_curl_of_the_tasks_page_gets_what_is_shown(stack: Stack, curl: str, answer: str) -> None:
    check(curl, answer, stack.url)
