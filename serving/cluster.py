"""The Serve application of a cluster: `import_path: serving.cluster:app` of a RayService.

Its arguments name files and digests, never values: Ray logs them, shows them in its dashboard and
keeps them in its store. Every replica reads the settings itself, from the file of its own pod.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ray import serve
from ray.serve.deployment import Application

from serving.app import Engines, Gateway, build_engine, gateway_options
from serving.artifacts.checkpoint import locate
from serving.contracts.errors import InvalidSettings
from serving.contracts.model_status import ModelStatus
from serving.contracts.plain_file import read_plain
from serving.contracts.settings import GpuAccelerator, ModelSettings, Settings, bundled_recipe
from serving.contracts.settings_sources import load_settings
from serving.contracts.task_spec import TaskSpec
from serving.contracts.validation_words import problem_with_value
from serving.preparation import checked_specs, model_grants

DIGEST = r"^sha256-[0-9a-f]{64}$"
_PREFIX = "sha256-"
ENGINE_NODES = {"narrowgate.dev/role": "engine"}
"""Labels that `narrowgate k8s render` gives the engine's group."""


class Release(BaseModel):
    """The arguments of the application: which settings, which model.

    settings: file, the same path in every pod. settings_digest: of that file, so that a replica
    never starts with another release's settings. artifact: digest of the only model that may serve.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    settings: Path
    settings_digest: str = Field(pattern=DIGEST)
    artifact: str = Field(pattern=DIGEST)

    @property
    def model_digest(self) -> str:
        """Return the model's digest in hex."""
        return self.artifact.removeprefix(_PREFIX)

    def load(self) -> "LoadedRelease":
        """Return the checked settings and tasks of this pod. Blocking.

        Raises InvalidSettings, InvalidTask.
        """
        try:
            content = read_plain(self.settings)
        except OSError as error:
            raise InvalidSettings(
                f"the settings {str(self.settings)!r} cannot be read: {error.strerror}",
                field="settings",
                fix="mount the release's ConfigMap there in every pod",
            ) from error
        found = _PREFIX + hashlib.sha256(content).hexdigest()
        if found != self.settings_digest:
            raise InvalidSettings(
                f"the settings {str(self.settings)!r} are {found}, and this release was rendered "
                f"with {self.settings_digest}",
                field="settings",
                fix="render again: narrowgate k8s render --settings FILE --artifact DIGEST",
            )
        settings = load_settings(self.settings, {})
        _refuse_other_source(settings, self)
        return LoadedRelease(settings, checked_specs(settings))


@dataclass(frozen=True, slots=True)
class LoadedRelease:
    """The settings and tasks of a release. specs: by task name."""

    settings: Settings
    specs: Mapping[str, TaskSpec]

    @property
    def model(self) -> ModelSettings:
        """Return the model that the release serves."""
        return self.settings.models[0]


class ClusterGateway(Gateway):
    """The gateway of a cluster. engine: binds the engine into the application; it is not called.

    A handle that Serve passes in belongs to the loop that made it; the gateway makes its own.
    """

    def __init__(self, release: Release, engine: Any) -> None:
        loaded = release.load()
        name = engine.deployment_name
        statuses = {loaded.model.id: ModelStatus("deployed", application=name)}
        application = serve.get_replica_context().app_name
        super().__init__(
            loaded.settings,
            loaded.specs,
            Engines(
                read=lambda: statuses,
                handle=lambda name: serve.get_deployment_handle(name, application),
                artifact=release.model_digest,
            ),
        )


def app(args: dict[str, Any]) -> Application:
    """Return the application of a release: the gateway and its engine.

    Needs the model's description and attestation on this pod, not its weights. Blocking, seconds.
    Raises InvalidSettings, AttestationRefused, InvalidKey, UnsuitableTarget.
    """
    try:
        release = Release.model_validate(args)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in problem["loc"]) or "args"
        raise InvalidSettings(
            f"args.{field} of the Serve application: {problem_with_value(problem)}",
            field=field,
            fix="use what narrowgate k8s render writes",
        ) from error
    loaded = release.load()
    settings, model = loaded.settings, loaded.model
    model_grants(settings, model, loaded.specs, release.model_digest)
    checkpoint = locate(model, settings.state)
    engine = build_engine(settings, model, checkpoint, release.model_digest, engine_nodes(model))
    application: Application = serve.deployment(**gateway_options(settings.gateway))(
        serve.ingress()(ClusterGateway)
    ).bind(release, engine)
    return application


def engine_nodes(model: ModelSettings) -> dict[str, str]:
    """Return the labels of the nodes on which an engine may run; empty for any.

    On processors an engine would fit a gateway's pod, which has no weights. A GPU is on engine pods
    alone.
    """
    return {} if isinstance(model.accelerator, GpuAccelerator) else ENGINE_NODES


def _refuse_other_source(settings: Settings, release: Release) -> None:
    """Raise InvalidSettings where the settings do not name the release's model on this pod."""
    if len(settings.models) != 1:
        raise InvalidSettings(
            f"the settings have {len(settings.models)} models, and a release serves one",
            field="models",
            fix="make a release of its own for each model",
        )
    source = settings.models[0].source
    folder = Path(source)
    if bundled_recipe(source) is not None or not folder.is_absolute():
        raise InvalidSettings(
            f"models.source is {source!r}, and a cluster loads models from a folder of the pod",
            field="models.0.source",
            fix="name the absolute path of the folder, such as /models/sha256-...",
        )
    if not folder.is_dir():
        raise InvalidSettings(
            f"this pod has no folder {source!r}",
            field="models.0.source",
            fix="its init container fetches it: narrowgate k8s fetch, with --descriptions where "
            "the weights are not needed",
        )
