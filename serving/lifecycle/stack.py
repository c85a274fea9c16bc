"""A Ray cluster of this process's own: the gateway, then each model's engine as it is ready."""

import asyncio
import json
import logging
import os
import re
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from serving.contracts.errors import EngineFailure, NarrowgateError
from serving.contracts.settings import Settings
from serving.lifecycle.environment import ray_environment
from serving.lifecycle.haproxy import Listeners
from serving.lifecycle.ports import next_free_port, refuse_taken_port
from serving.lifecycle.processes import adopt_orphans, end_descendants
from serving.lifecycle.signals import install_handlers

GATEWAY_APP = "narrowgate"

# All processes must end within 20 s after the signal, draining included.
_SERVE_SHUTDOWN_S = 5.0
_OBJECT_STORE_BYTES = 256 * 2**20
_GATEWAY_DEADLINE_S = 180.0
_ENGINES_DEADLINE_S = 3600.0
"""Longest time to fetch a large model from a hub, seconds."""
_CONNECT_DEADLINE_S = 120.0
_NODE_ATTEMPTS = 3
_SERVE_ATTEMPTS = 3
_NODE_TIMED_OUT = "timed out during startup"
_POLL_S = 0.2
_PROBE_TIMEOUT_S = 5.0
_FAILED = "DEPLOY_FAILED"


def engine_application(model_id: str) -> str:
    """Return the name of the Serve application of a model's engine."""
    # A colon is in no model id, so distinct models have distinct names.
    return "engine:" + model_id.replace("/", ":")


class LocalStack:
    """The stack on this machine under one port. Blocking; only for the main thread.

    folder: for sockets and the models' statuses; removed when the stack has stopped.
    """

    def __init__(self, settings: Settings, folder: Path, health_port: int) -> None:
        self._settings = settings
        self._gateway_runs = False
        self.statuses = folder / "models.json"
        self.url = f"http://{settings.host}:{settings.port}"
        self.health_url = f"http://{settings.host}:{health_port}"

    def start_ray(self) -> None:
        """Start Ray and Ray Serve, without any application."""
        from ray.serve.config import HTTPOptions

        _start_node()
        # ray.init sets its own SIGTERM handler, which ends the process at once.
        install_handlers()
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        host, port = self._settings.host, self._settings.port
        _start_serve(HTTPOptions(host=host, port=port))

    def deploy_gateway(self, application: Any) -> None:
        """Begin to start the gateway; returns at once."""
        _deploy({GATEWAY_APP: (application, "/")})

    def wait_gateway(self) -> None:
        """Return when the gateway answers over HTTP. Raises EngineFailure where it does not."""
        wait_until(
            lambda: _runs(GATEWAY_APP, "the gateway"),
            _GATEWAY_DEADLINE_S,
            lambda: "the gateway did not start",
        )
        self._gateway_runs = True
        # HAProxy learns of the gateway a moment after Serve does.
        wait_until(
            lambda: _status_code(f"{self.url}/healthz") == 200,
            _CONNECT_DEADLINE_S,
            lambda: f"the gateway does not answer at {self.url}/healthz",
        )

    def deploy_engines(self, applications: Mapping[str, Any]) -> None:
        """Begin to start engines; returns at once. applications: by model id."""
        _deploy({engine_application(name): (app, None) for name, app in applications.items()})

    def wait_engine(self, model_id: str) -> None:
        """Return when a model's engine has loaded and a gateway has connected to it.

        Raises EngineFailure, with the replica's reason where it has one.
        """
        wait_until(
            lambda: _runs(engine_application(model_id), f"the engine of model {model_id!r}"),
            _ENGINES_DEADLINE_S,
            lambda: f"the engine of model {model_id!r} did not load",
        )
        wait_until(
            lambda: _model_states(self.url).get(model_id) in ("ready", "failed"),
            _CONNECT_DEADLINE_S,
            lambda: (
                f"the gateway did not connect to model {model_id!r}; /readyz has it as "
                f"{_model_states(self.url).get(model_id)!r}"
            ),
        )

    def wait_ready(self) -> None:
        """Return when /readyz answers 200. Raises EngineFailure, which names what is missing."""
        wait_until(
            lambda: _status_code(f"{self.url}/readyz") == 200,
            _CONNECT_DEADLINE_S,
            lambda: f"{self.url}/readyz is not 200; models: {_model_states(self.url)}",
        )

    def shut_down(self) -> None:
        """Let requests in progress finish, then stop Ray Serve and Ray."""
        import ray

        if not ray.is_initialized():
            return
        drain_timeout_s = self._settings.gateway.drain_timeout_s if self._gateway_runs else 0.0
        # One loop for both: under RAY_SERVE_THROUGHPUT_OPTIMIZED a handle lives in the loop that
        # first used it.
        asyncio.run(_stop_serve(drain_timeout_s))
        ray.shutdown()


def _start_node() -> None:
    """Start Ray's processes. Raises EngineFailure where they do not come up."""
    import ray

    for _ in range(_NODE_ATTEMPTS):
        try:
            ray.init(
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                object_store_memory=_OBJECT_STORE_BYTES,
            )
        except Exception as error:
            # Ray waits 30 s for its own node, which a busy machine may need more of, and has no
            # class for that error.
            if _NODE_TIMED_OUT not in str(error):
                raise
            ray.shutdown()
            end_descendants(running_from=str(Path(ray.__file__).parent))
        else:
            return
    raise EngineFailure(
        f"Ray's node did not start in {_NODE_ATTEMPTS} attempts of 30 s",
        fix="free processor time or memory on this machine and start again",
    )


def _start_serve(options: Any) -> None:
    """Start Ray Serve. options: its HTTPOptions. Raises EngineFailure where it does not come up."""
    from ray import serve
    from ray.exceptions import RayActorError

    for _ in range(_SERVE_ATTEMPTS):
        try:
            serve.start(http_options=options)
        except (RayActorError, TimeoutError):
            # On a busy machine Serve's controller ends a proxy that is not ready in time, and
            # starts another one. The next attempt finds the controller and that proxy.
            continue
        return
    raise EngineFailure(
        f"Ray Serve's proxy did not start in {_SERVE_ATTEMPTS} attempts",
        fix="free processor time or memory on this machine and start again",
    )


@contextmanager
def local_stack(settings: Settings) -> Iterator[LocalStack]:
    """Yield a stack that has not been started; stop everything that it started at the end.

    Requests in progress at the end get `gateway.drain_timeout_s` to finish. Raises InvalidSettings
    when a port is taken.
    """
    gateway = settings.gateway
    refuse_taken_port(settings.host, settings.port)
    health_port = gateway.health_port
    if health_port is None:
        health_port = next_free_port(settings.host, settings.port)
    else:
        refuse_taken_port(settings.host, health_port, "gateway.health_port")
    adopt_orphans()
    folder = Path(tempfile.mkdtemp(prefix="narrowgate-"))
    listeners = Listeners(
        host=settings.host,
        health_port=health_port,
        max_connections=gateway.max_connections,
        max_connections_per_address=gateway.max_connections_per_address,
        header_timeout_s=gateway.header_timeout_s,
        idle_timeout_s=gateway.idle_timeout_s,
    )
    os.environ.update(ray_environment(folder, listeners))
    stack = LocalStack(settings, folder, health_port)
    try:
        yield stack
    finally:
        stack.shut_down()
        end_descendants()
        shutil.rmtree(folder, ignore_errors=True)


def _deploy(applications: Mapping[str, tuple[Any, str | None]]) -> None:
    from ray import serve
    from ray.serve import RunTarget

    serve.run_many(
        [
            RunTarget(target=application, name=name, route_prefix=route)
            for name, (application, route) in applications.items()
        ],
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )


def _runs(application: str, what: str) -> bool:
    """Return whether all of an application runs. Raises EngineFailure where it never will."""
    from ray import serve

    found = serve.status().applications.get(application)
    if found is not None and found.status == _FAILED:
        raise EngineFailure(
            f"{what} did not start: {_reason(application) or _first_line(found.message)}",
            fix=f"the replicas' logs are under {_log_folder()}",
        )
    return found is not None and found.status == "RUNNING"


def wait_until(holds: Callable[[], bool], deadline_s: float, missing: Callable[[], str]) -> None:
    """Return when a condition holds; look five times a second.

    missing: names what is not there, for the error. Raises EngineFailure after deadline_s.
    """
    until = time.monotonic() + deadline_s
    while not holds():
        if time.monotonic() > until:
            raise EngineFailure(
                f"{missing()} after {deadline_s:.0f} s",
                fix=f"the replicas' logs are under {_log_folder()}",
            )
        time.sleep(_POLL_S)


def _status_code(url: str) -> int | None:
    try:
        with urllib.request.urlopen(url, timeout=_PROBE_TIMEOUT_S) as response:  # noqa: S310  # ours
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (urllib.error.URLError, OSError):
        return None


def _model_states(url: str) -> dict[str, str]:
    """Return each model's state from /readyz; empty where it cannot be read."""
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=_PROBE_TIMEOUT_S) as response:  # noqa: S310  # ours
            content = response.read()
    except urllib.error.HTTPError as error:
        content = error.read()
    except (urllib.error.URLError, OSError):
        return {}
    try:
        models = json.loads(content)["models"]
    except (ValueError, KeyError, TypeError):
        return {}
    return {model_id: model["state"] for model_id, model in models.items()}


async def _drain(timeout_s: float) -> None:
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    # Called on the gateway itself, which knows the requests in progress and refuses new ones.
    # A gateway that cannot be called has nothing to drain.
    with suppress(TimeoutError, RayError, RayServeException):
        response = serve.get_app_handle(GATEWAY_APP).drain.remote(timeout_s)
        async with asyncio.timeout(timeout_s + 1.0):
            await response


async def _stop_serve(drain_timeout_s: float) -> None:
    from ray._private.ray_logging import global_worker_stdstream_dispatcher
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return
    # Ray logs every actor that ends from here on, and prints that its callers try again: expected.
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    global_worker_stdstream_dispatcher.remove_handler("ray_print_logs")
    if drain_timeout_s:
        await _drain(drain_timeout_s)
    with suppress(TimeoutError):
        await client.shutdown_async(timeout_s=_SERVE_SHUTDOWN_S)


def _log_folder() -> str:
    import ray

    node = ray._private.worker._global_node
    return "the Ray session folder" if node is None else str(node.get_logs_dir_path())


def _reason(application: str) -> str | None:
    """Return the NarrowgateError in Ray Serve's message about an application, if there is one."""
    from ray import serve

    names = "|".join(sorted(error.__name__ for error in _errors(NarrowgateError)))
    found = re.compile(rf"\b(?:{names}): (.+)")
    status = serve.status().applications.get(application)
    for deployment in status.deployments.values() if status is not None else ():
        if match := found.search(deployment.message):
            return match.group(1)
    return None


def _errors(kind: type[NarrowgateError]) -> list[type[NarrowgateError]]:
    return [kind, *(each for child in kind.__subclasses__() for each in _errors(child))]


def _first_line(text: str) -> str:
    return next(iter(text.splitlines()), text)
