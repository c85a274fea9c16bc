"""A gateway replica does not load large libraries that it does not use."""

import json
import subprocess
import sys

from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR

from serving.app import gateway_options
from serving.contracts.replica_process import REPLICA_ENVIRONMENT
from serving.contracts.settings import GatewaySettings

UNUSED = ("torch", "transformers", "matplotlib", "scipy.stats", "scipy.optimize", "sklearn",
          "anthropic", "openai", "onnx", "onnxruntime", "lingua", "vllm")  # fmt: skip
_LOADED = """
import json, sys
import serving.app
print(json.dumps([name for name in json.loads(sys.argv[1]) if name in sys.modules]))
"""
_LEFT_OUT = """
import sys
from ray._private.runtime_env.setup_hook import load_and_execute_setup_hook
error = load_and_execute_setup_hook(sys.argv[1])
assert error is None, error
import serving.app
from transformers import AutoTokenizer
assert [sys.modules[name] for name in ("torch", "pandas", "pyarrow")] == [None] * 3
print(AutoTokenizer.__name__)
"""


def output_of(program: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()[-1]


def test_importing_the_gateway_loads_no_large_library_that_it_may_not_use() -> None:
    assert json.loads(output_of(_LOADED, json.dumps(UNUSED))) == []


def test_a_replica_runs_without_torch_and_pandas() -> None:
    hook = REPLICA_ENVIRONMENT[WORKER_PROCESS_SETUP_HOOK_ENV_VAR]
    assert output_of(_LEFT_OUT, hook) == "AutoTokenizer"
    options = gateway_options(GatewaySettings())["ray_actor_options"]
    assert options["runtime_env"]["env_vars"] == REPLICA_ENVIRONMENT
