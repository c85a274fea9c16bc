"""Label probabilities that a served local model gives to texts: asked once over HTTP, then kept."""

import hashlib
import math
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.evidence_streams import Floats
from serving.contracts.errors import InvalidArgument
from serving.host.terminal import terminal_progress

_INPUTS_A_REQUEST = 16
_WAIT_S = 600.0
_FLOOR = 1e-6


def recorded_where_it_fits(
    stack: str, task: str, state: Path, texts: list[str], labels: list[str]
) -> Floats | None:
    """Return the log-probabilities of the labels, (n, len(labels)); None where labels differ.

    stack: address of a running stack whose model answers `task`, a classification. Nothing is sent
    to a provider (`route: local_only`). Kept under `state`, by texts, labels, task and model.
    Raises InvalidArgument.
    """
    with httpx.Client(base_url=stack, timeout=_WAIT_S) as client:
        first = _answers(client, task, texts[:1])[0]
        found = first.get("label_probabilities") or {}
        if sorted(found) != sorted(labels):
            return None
        content = "\0".join([task, first["model"], *labels, *texts])
        kept = state / "bench-evidence" / f"{hashlib.sha256(content.encode()).hexdigest()[:16]}.npy"
        if kept.is_file():
            outputs: Floats = np.load(kept, allow_pickle=False)
            return outputs
        rows: list[list[float]] = []
        with terminal_progress() as progress:
            bar = progress.add_task(f"recording {task}", total=len(texts))
            for start in range(0, len(texts), _INPUTS_A_REQUEST):
                for answer in _answers(client, task, texts[start : start + _INPUTS_A_REQUEST]):
                    probabilities = answer["label_probabilities"]
                    rows.append([math.log(max(probabilities[name], _FLOOR)) for name in labels])
                progress.update(bar, completed=len(rows))
    outputs = np.array(rows, dtype=np.float64)
    kept.parent.mkdir(parents=True, exist_ok=True)
    np.save(kept, outputs)
    return outputs


def _answers(client: httpx.Client, task: str, texts: list[str]) -> list[dict[str, Any]]:
    """Ask the task; wait while the stack is busy or starts. Raises InvalidArgument."""
    body = {"inputs": texts, "route": "local_only"}
    ends = time.monotonic() + _WAIT_S
    while True:
        try:
            reply = client.post(
                f"/v1/tasks/{task}", json=body, headers={"x-narrowgate-cache": "bypass"}
            )
        except httpx.HTTPError as error:
            raise InvalidArgument(f"no answer of {str(client.base_url)!r}: {error}") from error
        if reply.status_code == httpx.codes.OK:
            results: list[dict[str, Any]] = reply.json()["results"]
            failed = [one for one in results if one["error"]]
            if failed:
                raise InvalidArgument(f"task {task!r}: {failed[0]['error']['message']}")
            return [one["answer"] for one in results]
        retry_after = reply.headers.get("retry-after")
        if retry_after is None or time.monotonic() > ends:
            raise InvalidArgument(f"task {task!r} answered {reply.status_code}: {reply.text[:300]}")
        time.sleep(min(float(retry_after), 5.0))
