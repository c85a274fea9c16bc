"""A gateway replica does not load large libraries that it does not use."""

import json
import subprocess
import sys

UNUSED = ("torch", "transformers", "matplotlib", "scipy.stats", "scipy.optimize", "sklearn",
          "anthropic", "openai", "onnx", "onnxruntime", "lingua", "vllm")  # fmt: skip
_LOADED = """
import json, sys
import serving.app
print(json.dumps([name for name in json.loads(sys.argv[1]) if name in sys.modules]))
"""
_WITHOUT_TORCH = """
import sys
from ray import serve
from serving import app
app._leave_out_torch()
assert "torch" not in sys.modules, "left out outside a replica"
serve.get_replica_context = lambda: None
app._leave_out_torch()
from transformers import AutoTokenizer
assert sys.modules["torch"] is None
print(AutoTokenizer.__name__)
"""


def output_of(program: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()[-1]


def test_importing_the_gateway_loads_no_large_library_that_it_may_not_use() -> None:
    assert json.loads(output_of(_LOADED, json.dumps(UNUSED))) == []


def test_a_replica_tokenizes_without_torch() -> None:
    assert output_of(_WITHOUT_TORCH) == "AutoTokenizer"
