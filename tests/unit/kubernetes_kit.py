"""A RayService with what belongs to it, free of findings, that tests spoil one value of."""

import copy
from collections.abc import Mapping
from typing import Any

import yaml

from serving.kubernetes.lint.manifests import Resource, read_manifests

ARTIFACT = "sha256-" + "ab" * 32
IMAGE = "registry.example/narrowgate@sha256:" + "cd" * 32
ABSENT = object()
"""Spoils a value by removing it."""

SETTINGS: dict[str, Any] = {
    "state": "/var/lib/narrowgate",
    "auth": {"mode": "keys"},
    "attestation": {"development": False},
    "gateway": {"host": "0.0.0.0", "request_timeout_s": 120, "drain_timeout_s": 155},  # noqa: S104
    "ledger": {"url_file": "/run/secrets/ledger/url"},
    "models": [{"id": "llama", "source": "/models/llama"}],
}
SERVE: dict[str, Any] = {
    "proxy_location": "EveryNode",
    "applications": [
        {
            "name": "narrowgate",
            "import_path": "serving.cluster:app",
            "args": {"settings": "/etc/narrowgate/settings.yaml", "artifact": ARTIFACT},
            "deployments": [{"name": "Gateway", "ray_actor_options": {"num_cpus": 1}}],
        }
    ],
}


def _container(resources: Mapping[str, Mapping[str, object]], *more: Any) -> dict[str, Any]:
    return {
        "name": "ray",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "env": [
            {"name": "RAY_SERVE_ENABLE_HA_PROXY", "value": "1"},
            {"name": "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "value": "170"},
            {"name": "HOME", "value": "/home/ray"},
            {"name": "ANTHROPIC_API_KEY",
             "valueFrom": {"secretKeyRef": {"name": "providers", "key": "anthropic"}}},
            *more,
        ],
        "readinessProbe": {"httpGet": {"path": "/-/healthz", "port": 8000}},
        "securityContext": {"readOnlyRootFilesystem": True},
        "volumeMounts": [
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
            {"name": "home", "mountPath": "/home/ray"},
        ],
        "resources": copy.deepcopy(dict(resources)),
    }  # fmt: skip


def _pod(container: dict[str, Any], role: str) -> dict[str, Any]:
    return {
        "metadata": {
            "labels": {"narrowgate.dev/role": role},
            "annotations": {"narrowgate.dev/artifact": ARTIFACT},
        },
        "spec": {
            "enableServiceLinks": False,
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 200,
            "containers": [container],
        },
    }


_PLAIN = {"requests": {"cpu": "2", "memory": "8Gi", "ephemeral-storage": "10Gi"},
          "limits": {"memory": "8Gi"}}  # fmt: skip
_WITH_GPU = {
    "requests": {"cpu": "6", "memory": "24Gi", "nvidia.com/gpu": 1, "ephemeral-storage": "40Gi"},
    "limits": {"memory": "24Gi", "nvidia.com/gpu": 1},
}


def documents() -> dict[str, dict[str, Any]]:
    """Return the objects by kind."""
    sampler = {"name": "VLLM_USE_FLASHINFER_SAMPLER", "value": "0"}
    service = {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": "narrowgate"},
        "spec": {
            "rayClusterDeletionDelaySeconds": 180,
            "upgradeStrategy": {"type": "NewCluster"},
            "serveConfigV2": copy.deepcopy(SERVE),
            "rayClusterConfig": {
                "rayVersion": "2.60.0",
                "gcsFaultToleranceOptions": {
                    "redisAddress": "redis:6379",
                    "redisPassword": {
                        "valueFrom": {"secretKeyRef": {"name": "redis", "key": "password"}}
                    },
                },
                "headGroupSpec": {
                    "rayStartParams": {"num-cpus": "0"},
                    "template": _pod(_container(_PLAIN), "head"),
                },
                "workerGroupSpecs": [
                    {
                        "groupName": "gateway",
                        "rayStartParams": {"num-cpus": "1"},
                        "template": _pod(_container(_PLAIN), "gateway"),
                    },
                    {
                        "groupName": "engine",
                        "rayStartParams": {},
                        "resources": {"CPU": "0", "GPU": "1", "accelerator_type:A10G": "1"},
                        "template": _pod(_container(_WITH_GPU, sampler), "engine"),
                    },
                ],
            },
        },
    }
    return {
        "RayService": service,
        "ConfigMap": {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "settings"},
            "data": {"settings.yaml": copy.deepcopy(SETTINGS)},
        },
        "PodDisruptionBudget": {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {"name": "gateway"},
            "spec": {
                "minAvailable": 1,
                "selector": {"matchLabels": {"narrowgate.dev/role": "gateway"}},
            },
        },
        "NetworkPolicy": {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "all"},
            "spec": {
                "podSelector": {},
                "policyTypes": ["Ingress", "Egress"],
                "egress": [{"ports": [{"protocol": "UDP", "port": 53}]}],
            },
        },
        "PodMonitor": {
            "apiVersion": "monitoring.coreos.com/v1",
            "kind": "PodMonitor",
            "metadata": {"name": "gateway"},
            "spec": {
                "selector": {"matchLabels": {"narrowgate.dev/role": "gateway"}},
                "podMetricsEndpoints": [{"port": "metrics"}],
            },
        },
    }


def spoil(found: dict[str, Any], path: str, value: Any) -> None:
    """Set the value at a path such as `spec.containers.0.image`; `|` separates keys with dots."""
    separator = "|" if "|" in path else "."
    *parents, last = path.split(separator)
    at: Any = found
    for key in parents:
        at = at[int(key)] if isinstance(at, list) else at.setdefault(key, {})
    if isinstance(at, list):
        at.append(value)
    elif value is ABSENT:
        del at[last]
    else:
        at[last] = value


def written(found: Mapping[str, dict[str, Any]]) -> str:
    """Return the objects as YAML documents, with what stands inside strings as strings."""
    shown = copy.deepcopy(dict(found))
    for each in shown.values():
        spec, data = each.get("spec", {}), each.get("data", {})
        if isinstance(spec, dict) and isinstance(spec.get("serveConfigV2"), dict):
            spec["serveConfigV2"] = yaml.safe_dump(spec["serveConfigV2"])
        for key, value in data.items():
            data[key] = value if isinstance(value, str) else yaml.safe_dump(value)
    return yaml.dump_all(shown.values(), Dumper=_Blocks, sort_keys=False)


def read(found: Mapping[str, dict[str, Any]]) -> list[Resource]:
    """Return the objects as the linter reads them."""
    return read_manifests("all.yaml", written(found).encode())


class _Blocks(yaml.SafeDumper):
    """Writes texts of several lines as block scalars, as people and kustomize do."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Blocks.add_representer(str, _text)
