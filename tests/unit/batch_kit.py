"""Files of batches, and what checks them."""

import json
from typing import Any

from serving.batch.check import LineRules
from serving.contracts.frontier_settings import FrontierSettings, ProviderSettings
from serving.contracts.ledger import Caller
from serving.contracts.routing import TIERS
from serving.contracts.routing_settings import RoutingSettings
from serving.contracts.task_spec import TaskSpec
from serving.gateway.batch_lines import HttpLineFormat
from serving.pipeline.plan import Policy

CHAT = "/v1/chat/completions"
MODEL = "openai/gpt-4.1"
ACME = Caller("acme")


def chat_line(custom_id: Any, text: str = "Hello", **changes: Any) -> dict[str, Any]:
    """Return a line with a chat; changes are fields of its body."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], **changes}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}


def task_line(custom_id: str, task: str, text: str = "Fine.") -> dict[str, Any]:
    return {
        "custom_id": custom_id, "method": "POST", "url": f"/v1/tasks/{task}",
        "body": {"input": text},
    }  # fmt: skip


def jsonl(*lines: Any) -> bytes:
    """Return a file; bytes are taken as they are."""
    return b"".join(
        (line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines
    )


def line_rules(specs: dict[str, TaskSpec], **changes: Any) -> LineRules:
    provider = ProviderSettings(api="openai", api_key_env="OPENAI_API_KEY")
    tiers = dict.fromkeys(TIERS, (MODEL,))
    policy = Policy.of(
        FrontierSettings(providers={"openai": provider}, tiers=tiers), RoutingSettings(), specs,
        {"tiny": 1000}, lambda targets: tuple(t for t in targets if t.startswith("openai/")),
    )  # fmt: skip
    values: dict[str, Any] = {
        "policy": policy, "line_format": HttpLineFormat(), "model_of": lambda _: "tiny",
        "max_inputs": 16, "longest": 20_000, "max_lines": 5_000, **changes,
    }  # fmt: skip
    return LineRules(**values)
