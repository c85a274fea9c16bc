"""Settings that one machine can run and a cluster cannot."""

import re
from collections.abc import Iterator

from serving.contracts.errors import InvalidSettings
from serving.contracts.settings import Settings
from serving.kubernetes.digest import PREFIX
from serving.kubernetes.pods import LEDGER_URL, MODELS
from serving.lifecycle.pod import CONFIG_FOLDER, DrainTimes

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


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
