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
# What the hook leaves out is None there: an import of it fails.
_REPLICA = """
import json, sys
from ray._private.runtime_env.setup_hook import load_and_execute_setup_hook
error = load_and_execute_setup_hook(sys.argv[1])
assert error is None, error
import serving.app
loaded = [name for name in json.loads(sys.argv[2]) if sys.modules.get(name) is not None]
from transformers import AutoTokenizer
assert [sys.modules[name] for name in ("torch", "pandas", "pyarrow")] == [None] * 3
print(json.dumps([AutoTokenizer.__name__, loaded]))
"""


def test_a_replica_runs_without_torch_and_pandas_and_loads_no_large_library_at_first() -> None:
    hook = REPLICA_ENVIRONMENT[WORKER_PROCESS_SETUP_HOOK_ENV_VAR]
    done = subprocess.run(
        [sys.executable, "-c", _REPLICA, hook, json.dumps(UNUSED)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout.splitlines()[-1]) == ["AutoTokenizer", []]
    options = gateway_options(GatewaySettings())["ray_actor_options"]
    assert options["runtime_env"]["env_vars"] == REPLICA_ENVIRONMENT
