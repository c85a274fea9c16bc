"""ray.serve.llm validates the arguments that the stack gives it, for a CPU and for GPUs.

An integration test because importing ray.serve.llm imports vLLM: half a minute on a busy machine.
"""

from typing import Any

import pytest

from serving.artifacts.checkpoint import Checkpoint
from serving.contracts.settings import ModelSettings, Settings
from serving.local.deployment import llm_config_arguments

GPU = ModelSettings.model_validate(
    {"id": "m", "source": "a/b", "accelerator": {"kind": "gpu", "type": "A10G", "count": 2}}
)


def _callback(config: Any) -> Any:
    """Return what a replica makes of the configuration, without a placement group."""
    from ray.llm._internal.common.utils.import_utils import load_class

    found = config.callback_config
    return load_class(found.callback_class)(config, found.raise_error_on_callback)


@pytest.mark.parametrize(
    ("model", "checkpoint"),
    [
        pytest.param(Settings().models[0], Checkpoint("some-folder", None), id="cpu"),
        pytest.param(GPU, Checkpoint("owner/name", "0" * 40), id="gpu"),
    ],
)
def test_ray_accepts_the_arguments(model: ModelSettings, checkpoint: Checkpoint) -> None:
    from ray.serve.llm import LLMConfig

    config = LLMConfig(**llm_config_arguments(model, checkpoint, 7.0))
    assert config.model_id == model.id
    # No task on another worker has to import vLLM before the engine starts.
    assert not _callback(config).ctx.run_init_node
    with pytest.raises(ValueError, match="no_such_field"):
        LLMConfig(**llm_config_arguments(model, checkpoint, 7.0), no_such_field=1)
