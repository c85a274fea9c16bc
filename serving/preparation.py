"""The checks of settings and tasks before any replica starts, on one machine or in a cluster."""

from collections.abc import Mapping

from serving.artifacts.bundled_choice import BundledChoice, read_choice
from serving.artifacts.checkpoint import bundled_artifact, locate
from serving.artifacts.load_check import LoadCheck, ModelGrants
from serving.contracts.settings import ModelSettings, Settings, bundled_recipe
from serving.contracts.task_spec import TaskSpec
from serving.settings_linter import lint
from serving.tasks.catalog import load_specs


def checked_specs(settings: Settings) -> dict[str, TaskSpec]:
    """Return every task by name; refuse settings that are known to do harm.

    Blocking. Raises InvalidSettings, InvalidTask.
    """
    lint(settings)
    return dict(load_specs(settings.tasks_dir))


def model_grants(
    settings: Settings,
    model: ModelSettings,
    specs: Mapping[str, TaskSpec],
    artifact: str | None = None,
) -> ModelGrants:
    """Return what a model's attestation grants, or raise the reason for which it is refused.

    artifact: digest (hex) of the only model that may serve. Reads the attestation, not the weights.
    Blocking. Raises AttestationRefused, InvalidKey.
    """
    checkpoint = locate(model, settings.state)
    return ModelGrants.of(LoadCheck.of(settings, model, checkpoint, artifact), specs)


def bundled_choice(settings: Settings, model: ModelSettings) -> BundledChoice | None:
    """Return whether a bundled model serves quantized; None for one without a recipe. Blocking."""
    recipe = bundled_recipe(model.source)
    return None if recipe is None else read_choice(bundled_artifact(settings.state, recipe))
