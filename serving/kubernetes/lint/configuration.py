"""Rules on secrets, on narrowgate's settings, on models and on what is scraped."""

import re
from collections.abc import Iterator

from serving.kubernetes.lint.cluster import Group, Manifests, SettingsFile, literals
from serving.kubernetes.lint.finding import Place, Rule
from serving.kubernetes.lint.manifests import Fields, items, mappings, section, text

_SECRET_KEY = re.compile(
    r"(^|[._-])(api[._-]?key|access[._-]?key|private[._-]?key|secret|password|passwd|token"
    r"|credentials?)$",
    re.IGNORECASE,
)
_SECRET_VALUE = re.compile(
    r"\b(sk-[A-Za-z0-9_-]{16,}|hf_[A-Za-z0-9]{16,}|AKIA[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{20,})"
    r"|://[^/\s:@]+:[^/\s:@$]+@"
)
_REFERENCE = re.compile(r"^(\$|/|<|\{\{)")
_LOOPBACK = re.compile(r"^(localhost|127\.|::1)")


def _secrets(manifests: Manifests) -> Iterator[Place]:
    for cluster in manifests.clusters:
        yield from _literal(cluster.resource.file, "serveConfigV2", cluster.serve)
        for group in cluster.groups:
            yield from _variables(group)
    for found in manifests.settings:
        yield from _literal(found.resource.file, found.resource.title, found.fields)


def _literal(file: str, holder: str, fields: Fields) -> Iterator[Place]:
    for each, key, value in literals(fields):
        if _is_secret(key, value):
            yield Place(file, each.line_of(key), f"{holder} holds the value of {key!r}")


def _variables(group: Group) -> Iterator[Place]:
    for container in group.containers:
        for name, variable in container.environment.items():
            if _is_secret(name, text(variable.get("value"))):
                message = f"the variable {name} of {group.title} is a literal value"
                yield Place(group.resource.file, variable.line_of("value"), message)


def _is_secret(key: str, value: str) -> bool:
    if not value or _REFERENCE.match(value):
        return False
    return bool(_SECRET_KEY.search(key) or _SECRET_VALUE.search(value))


def _settings(manifests: Manifests) -> Iterator[Place]:
    for found in manifests.settings:
        yield from _settings_of(found)


def _settings_of(found: SettingsFile) -> Iterator[Place]:
    file, fields = found.resource.file, found.fields
    ledger, gateway = section(fields, "ledger"), section(fields, "gateway")
    url = text(ledger.get("url"))
    if not url.startswith("postgresql") and not text(ledger.get("url_file")):
        yield Place(file, ledger.line_of("url"), "the ledger is not on PostgreSQL (ledger.url or "
                    f"ledger.url_file); it is {url or 'SQLite in the state folder'}")  # fmt: skip
    state = text(fields.get("state"))
    if not state.startswith("/"):
        yield Place(file, fields.line_of("state"), f"state is {state!r}, not an absolute path")
    auth = section(fields, "auth")
    if text(auth.get("mode")) in ("off", "false"):
        yield Place(file, auth.line_of("mode"), "auth.mode is off")
    attestation = section(fields, "attestation")
    if attestation.get("development") is True:
        yield Place(file, attestation.line_of("development"), "attestation.development is true")
    host = text(gateway.get("host"))
    if _LOOPBACK.match(host):
        yield Place(file, gateway.line_of("host"), f"gateway.host is {host!r}")


def _sources(manifests: Manifests) -> Iterator[Place]:
    for found in manifests.settings:
        for model in items(found.fields, "models"):
            source = text(model.get("source"))
            if source and not source.startswith("/"):
                yield Place(found.resource.file, model.line_of("source"),
                            f"models.source is {source!r}")  # fmt: skip
    for cluster in manifests.clusters:
        for config in mappings(cluster.serve):
            source = _remote_source(config)
            if source:
                yield Place(cluster.resource.file, config.line,
                            f"model_source is {source!r}")  # fmt: skip


def _remote_source(config: Fields) -> str:
    """Return a bucket that vLLM or Ray would load weights from, or an empty string."""
    written = config.get("model_source")
    source = text(section(config, "model_source").get("bucket_uri")) or text(written)
    return source if re.match(r"(s3|gs|abfss?|azure)://", source) else ""


def _scraped(manifests: Manifests) -> Iterator[Place]:
    for resource in manifests.of_kind("ServiceMonitor"):
        selector = section(resource.spec, "selector", "matchLabels")
        names = [cluster.service_name for cluster in manifests.clusters]
        chosen = [text(value) for value in selector.values()]
        serves = "ray.io/serve" in selector or any(name in chosen for name in names)
        if serves or any("serve" in text(each.get("port")) for each in
                         items(resource.spec, "endpoints")):  # fmt: skip
            yield Place(resource.file, resource.spec.line,
                        f"{resource.title} scrapes through the serve Service")  # fmt: skip


RULES = (
    Rule(
        "K12", "Secrets are references.",
        "Arguments of an application are logged and shown by the dashboard, and what is bound "
        "into a deployment is stored in the head's Redis.",
        "ray 2.60.0, ray.serve.schema", "name a Secret: valueFrom.secretKeyRef, or a mounted file",
        "error", _secrets,
    ),
    Rule(
        "K13", "Settings of narrowgate fit a cluster.",
        "SQLite and a relative state folder are lost with the pod; without authentication, "
        "attestation or an outside address the gateway is open, unproven or unreachable.",
        "docs/settings.md",
        "set ledger.url_file, an absolute state, auth.mode keys, and host 0.0.0.0", "error",
        _settings,
    ),
    Rule(
        "K23", "Metrics are scraped from each pod.",
        "A Service answers for one random replica, so that counters jump back and forth.",
        "Prometheus, pull model", "use a PodMonitor on the metrics ports", "error", _scraped,
    ),
    Rule(
        "K24", "Models come from a verified folder.",
        "A hub id or a bucket is fetched by each pod, without a check of its bytes, and needs "
        "egress.",
        "vllm 0.29.0, runai streamer",
        "fetch the artifact by its digest in an init container, and name the folder", "error",
        _sources,
    ),
)  # fmt: skip
