"""Leaves out what ray.serve.llm does on each node before an engine starts."""

from typing import Any

from ray.llm._internal.common.callbacks.base import CallbackBase


class WithoutDownload(CallbackBase):  # type: ignore[misc]  # untyped upstream
    """Skips the task that fetches a model from a cloud bucket.

    No model here comes from one: folders are on the node already, and vLLM itself fetches hub
    models. The task does nothing then, after its process has imported vLLM (17 s on two slow
    cores), for which the engine waits.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ctx.run_init_node = False
