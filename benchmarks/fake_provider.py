"""A fake frontier provider: vLLM's OpenAI server with the bundled model in 16 bits.

It serves one model under every name. Token counts are real; the quality of the answers is not
that of a frontier model.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from benchmarks.processes import listening

if TYPE_CHECKING:
    from serving.contracts.settings import Settings

WINDOW = 2048
_START_S = 400.0


def server_command(path: str, port: int, names: Sequence[str]) -> list[str]:
    """Return the command that starts the server."""
    return [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server",
        "--model", path,
        "--served-model-name", *names,
        "--host", "127.0.0.1",
        "--port", str(port),
        "--max-model-len", str(WINDOW),
        "--max-num-seqs", "16",
        # Providers do not cache prefixes as short as these prompts.
        "--no-enable-prefix-caching",
        "--generation-config", "vllm",
        "--enforce-eager",
        "--disable-log-stats",
        "--disable-uvicorn-access-log",
    ]  # fmt: skip


@contextmanager
def fake_provider(settings: "Settings", port: int, models: Sequence[str]) -> Iterator[str]:
    """Start the server and yield its URL. Blocks for one to two minutes. Raises EngineFailure.

    models: every `provider/model` that it serves. settings: its state folder holds the bundled
    model, which is written if it is missing.
    """
    from serving.artifacts.checkpoint import locate
    from serving.commands.progress import step
    from serving.contracts.settings import BUNDLED_MODEL
    from serving.local.deployment import offline_arguments

    model = settings.models[0].model_copy(update={"source": BUNDLED_MODEL})
    checkpoint = locate(model, settings.state)
    _, environment = offline_arguments(model, checkpoint)
    names = list(dict.fromkeys(name.partition("/")[2] for name in models))
    command = server_command(checkpoint.source, port, names)
    with ExitStack() as running:
        with step("starting the fake provider"):
            url = running.enter_context(listening(command, port, _START_S, environment=environment))
        yield url
