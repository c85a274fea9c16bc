"""Engine arguments: only listed ones may be set and are passed by the deployment."""

from typing import Any

import pytest
from pydantic import ValidationError

from serving.artifacts.checkpoint import Checkpoint
from serving.contracts.engine_arguments import (
    ATTESTED_ARGUMENTS,
    FREE_ARGUMENTS,
    REFUSED_ARGUMENTS,
    answer_arguments,
    unlisted_arguments,
)
from serving.contracts.errors import InvalidSettings
from serving.contracts.settings import ModelSettings
from serving.local.deployment import llm_config_arguments
from serving.settings_linter import lint_engines

from .test_linter import settings


def model(**changes: Any) -> ModelSettings:
    return settings(**changes).models[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("load_format", "dummy"),
        ("hf_config_path", "/srv/other"),
        ("hf_overrides", {"rope_theta": 1.0}),
        ("hf_overrides", '{"rope_theta": 1.0}'),
        ("model_impl", "transformers"),
        ("worker_cls", "a.b.C"),
        ("worker_extension_cls", "a.b.C"),
        ("logits_processors", ["a.b.C"]),
        ("config_format", "mistral"),
        ("tokenizer_mode", "slow"),
        ("enable_lora", True),
        ("default_mm_loras", {"audio": "x"}),
        ("speculative_config", {"model": "x"}),
        ("rope_scaling", {"factor": 2}),
        ("chat_template", "{{ messages }}"),
        ("an_argument_of_a_later_version", 1),
        ("Load_Format", "dummy"),
    ],
)
def test_an_unlisted_argument_is_refused_with_name_and_fix(name: str, value: object) -> None:
    with pytest.raises(InvalidSettings, match=f"engine argument {name!r} is not allowed") as caught:
        lint_engines(settings(engine_args={name: value}))
    assert caught.value.field == f"models.0.engine_args.{name}"
    assert caught.value.fix


@pytest.mark.parametrize("value", [None, [1], {"a": 1}])
def test_a_listed_argument_has_a_single_value(value: object) -> None:
    with pytest.raises(InvalidSettings, match="not a text, number or boolean"):
        lint_engines(settings(engine_args={"block_size": value}))


def test_listed_arguments_may_be_set() -> None:
    lint_engines(settings(engine_args={"kv_cache_dtype": "fp8", "max_num_batched_tokens": 4096}))


def test_the_lists_do_not_overlap() -> None:
    assert not FREE_ARGUMENTS & ATTESTED_ARGUMENTS
    assert not (FREE_ARGUMENTS | ATTESTED_ARGUMENTS) & REFUSED_ARGUMENTS.keys()


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_the_deployment_passes_listed_arguments_only(kind: str) -> None:
    chosen = model(
        accelerator={"kind": kind}, dtype="bfloat16", engine_args={"enforce_eager": True}
    )
    arguments = llm_config_arguments(chosen, Checkpoint("a/b", "0" * 40), 1.0)["engine_kwargs"]
    assert unlisted_arguments(arguments) == []
    recorded = answer_arguments(arguments)
    assert recorded["enforce_eager"] is True
    assert recorded["dtype"] == "bfloat16"
    assert not recorded.keys() & FREE_ARGUMENTS
    assert "revision" not in recorded


def test_every_listed_argument_is_one_of_vllms() -> None:
    """Read from the source: importing vLLM takes many seconds."""
    import importlib.util

    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.submodule_search_locations
    from pathlib import Path

    root = Path(spec.submodule_search_locations[0])
    source = (root / "engine" / "arg_utils.py").read_text(encoding="utf-8")
    http = root / "entrypoints" / "launchers" / "cli_args.py"
    source += http.read_text(encoding="utf-8")
    for name in sorted(FREE_ARGUMENTS | ATTESTED_ARGUMENTS):
        assert f"\n    {name}: " in source, name


def test_an_argument_needs_a_value_that_settings_can_hold() -> None:
    with pytest.raises(ValidationError):
        ModelSettings.model_validate(
            {"id": "m", "source": "x", "accelerator": {"kind": "cpu"}, "engine_args": {"a": object}}
        )
