"""Settings that one machine can run and a cluster cannot."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from serving.contracts.errors import InvalidArgument, InvalidSettings
from serving.contracts.settings import Settings
from serving.kubernetes.digest import PREFIX
from serving.kubernetes.pods import LEDGER_URL, MODELS, STORE
from serving.lifecycle.pod import CONFIG_FOLDER, DrainTimes

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_RAYS_PORTS = (6379, 8080, 8265, 10001, 52365)
_MOUNTED = (CONFIG_FOLDER, MODELS, STORE, "/tmp", "/home/narrowgate",  # noqa: S108  # in the pod
            LEDGER_URL.rpartition("/")[0])  # fmt: skip


def unfit_settings(settings: Settings) -> Iterator[InvalidSettings]:
    """Yield what a cluster cannot run."""
    gateway, rules = settings.gateway, settings.attestation
    drain_s = DrainTimes.of(gateway).gateway_s
    source = settings.models[0].source if settings.models else None
    fetched = rf"{MODELS}/{PREFIX}[0-9a-f]{{64}}"
    # field, value, whether it fits, why not, what to write
    found: list[tuple[str, object, bool, str, str]] = [
        ("host", settings.host, settings.host not in _LOOPBACK,
         "pods reach each other by address", "0.0.0.0"),  # noqa: S104  # in the pod
        ("state", str(settings.state), settings.state.is_absolute(),
         "it must be a volume", "/var/lib/narrowgate"),
        ("state", str(settings.state), not any(_overlap(settings.state, at) for at in _MOUNTED),
         "another volume is mounted there", "/var/lib/narrowgate"),
        ("port", settings.port, settings.port not in _RAYS_PORTS,
         "Ray or its metrics have this port in the pod", "8000"),
        ("metrics_port", settings.metrics_port,
         settings.metrics_port not in (settings.port, *_RAYS_PORTS),
         "another port of the pod has this number", "9091"),
        ("cache.encryption_key_file", settings.cache.encryption_key_file,
         not _is_config(settings.cache.encryption_key_file),
         "the ConfigMap is mounted there, and holds no key", "a path of a Secret's volume"),
        ("evidence.signing_key", settings.evidence.signing_key,
         not _is_config(settings.evidence.signing_key),
         "the ConfigMap is mounted there, and holds no key", "a path of a Secret's volume"),
        ("models", len(settings.models), len(settings.models) == 1,
         "a release serves one model", "a release for each"),
        ("models.0.source", source, re.fullmatch(fetched, source or "") is not None,
         "pods load what their init container fetched", f"{MODELS}/{PREFIX} and 64 hex digits"),
        ("ledger.url_file", settings.ledger.url_file, settings.ledger.url_file is not None,
         "SQLite is lost with its pod, and a URL in settings shows its password", LEDGER_URL),
        ("auth.mode", settings.auth.mode, settings.auth.mode == "keys",
         "everyone could call the gateway", "keys"),
        ("attestation.development", rules.development, not rules.development,
         "no attestation would be enforced", "false"),
        ("attestation.trusted_keys", rules.trusted_keys, bool(rules.trusted_keys),
         "no attestation can be verified", f"[{CONFIG_FOLDER}/gate.pub]"),
        ("gateway.num_cpus", gateway.num_cpus, gateway.num_cpus >= 1,
         "a gateway without CPUs may be placed on the head", "1"),
        ("gateway.max_replicas_per_node", gateway.max_replicas_per_node,
         gateway.max_replicas_per_node == 1, "each gateway pod has one replica", "1"),
        ("gateway.drain_timeout_s", gateway.drain_timeout_s, gateway.drain_timeout_s >= drain_s,
         "30 s of deregistration, gateway.request_timeout_s and 5 s do not fit", str(drain_s)),
    ]  # fmt: skip
    for field, value, fits, reason, fix in found:
        if not fits:
            yield InvalidSettings(
                f"{field} is {value!r}, which a cluster cannot run: {reason}",
                field=field,
                fix=f"use {fix}",
            )


def refuse_unfit_store(store: str) -> None:
    """Raise InvalidArgument for a model store that pods cannot read."""
    if store.startswith("/") and store.strip("/") and not re.search(r"\s", store):
        return
    try:
        found = urlsplit(store)
    except ValueError:
        found = urlsplit("")
    is_plain = not re.search(r"\s", store) and found.username is None and found.password is None
    if found.scheme != "https" or not found.hostname or not is_plain:
        raise InvalidArgument(
            f"{store[:80]!r} is no model store that pods can read"
            if is_plain
            else "the model store's address holds a user name, a password or white space",
            field="--store",
            fix="name a folder that is mounted in the pods, such as /store, or an https URL "
            "without a user name",
        )


def _overlap(one: Path, other: str) -> bool:
    """Return whether two mounts would be one, or one inside the other."""
    return one.is_relative_to(other) or Path(other).is_relative_to(one)


def _is_config(path: Path | None) -> bool:
    return path is not None and path.is_relative_to(CONFIG_FOLDER)
