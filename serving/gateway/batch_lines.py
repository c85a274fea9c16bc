"""What the HTTP format says of one line of a batch: its JSON, options, errors and answers.

Implements serving.batch.lines.LineFormat, so that a line means what the same request means online.
"""

from typing import Any

from serving.contracts.batch import HttpError
from serving.contracts.errors import NarrowgateError
from serving.contracts.routing import RequestOptions
from serving.gateway.errors import error_body, status_of
from serving.gateway.http_request import body_options, parse_json
from serving.gateway.tasks_api import task_reply
from serving.pipeline.write import TaskReply


class HttpLineFormat:
    """The format of the endpoints."""

    def parse(self, data: bytes) -> Any:
        """Return a JSON document. Raises InvalidRequest."""
        return parse_json(data)

    def options(self, body: dict[str, Any]) -> tuple[RequestOptions, float | None]:
        """Take the option fields out of a body; return them and its deadline in seconds."""
        return body_options(body)

    def error(self, error: NarrowgateError) -> HttpError:
        """Return the response to an error."""
        return HttpError(status_of(error), error_body(error))

    def task_document(self, reply: TaskReply, request_id: str) -> dict[str, Any]:
        """Return the body of a task's response. Raises the error of an only input."""
        return task_reply(reply, request_id).model_dump(mode="json")
