"""The NetworkPolicies as a graph: who reaches whom, on which port."""

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

import pytest

from .manifest_kit import OVERLAYS, Object, of_kind, overlay, pod_templates

NAMESPACE = "narrowgate"


@dataclass(frozen=True, slots=True)
class Peer:
    """A pod by its labels, or an address outside the cluster."""

    labels: tuple[tuple[str, str], ...] = ()
    namespace: tuple[tuple[str, str], ...] = (("kubernetes.io/metadata.name", NAMESPACE),)
    address: str | None = None


def role(name: str) -> Peer:
    return Peer((("narrowgate.dev/role", name),))


DNS = Peer((("k8s-app", "kube-dns"),), (("kubernetes.io/metadata.name", "kube-system"),))
OPERATOR = Peer((), (("kubernetes.io/metadata.name", "kuberay-system"),))
CLIENT = Peer((), (("narrowgate.dev/access", "clients"),))
MONITORING = Peer((), (("narrowgate.dev/access", "monitoring"),))
STRANGER = Peer((("app", "other"),), (("kubernetes.io/metadata.name", "other"),))
PROVIDER = Peer(address="203.0.113.7")
DATABASE = Peer(address="10.1.2.3")
METADATA = Peer(address="169.254.169.254")


def selects(selector: Object, labels: dict[str, str]) -> bool:
    wanted = selector.get("matchLabels", {})
    if any(labels.get(key) != value for key, value in wanted.items()):
        return False
    for each in selector.get("matchExpressions", []):
        assert each["operator"] == "In"
        if labels.get(each["key"]) not in each["values"]:
            return False
    return True


def admits(rule: Object, side: str, peer: Peer, protocol: str, port: int) -> bool:
    """Return whether a rule lets a peer through. side: `from` or `to`."""
    ports = rule.get("ports")
    if ports is not None and not any(
        each.get("protocol", "TCP") == protocol and each.get("port", port) == port for each in ports
    ):
        return False
    if side not in rule:
        return True
    return any(_is(each, peer) for each in rule[side])


def _is(block: Object, peer: Peer) -> bool:
    if "ipBlock" in block:
        if peer.address is None:
            return False
        address = ip_address(peer.address)
        return address in ip_network(block["ipBlock"]["cidr"]) and not any(
            address in ip_network(each) for each in block["ipBlock"].get("except", [])
        )
    if peer.address is not None:
        return False
    own = block.get("namespaceSelector")
    if own is None:
        if dict(peer.namespace).get("kubernetes.io/metadata.name") != NAMESPACE:
            return False
    elif not selects(own, dict(peer.namespace)):
        return False
    return selects(block.get("podSelector", {}), dict(peer.labels))


def policies_of(policies: list[Object], peer: Peer, kind: str) -> Iterator[Object]:
    """Yield the policies that govern a pod in a direction. None: everything is allowed."""
    for policy in policies:
        spec = policy["spec"]
        if kind in spec["policyTypes"] and selects(spec["podSelector"], dict(peer.labels)):
            yield policy


def inside(peer: Peer) -> bool:
    return peer.address is None and dict(peer.namespace).get(
        "kubernetes.io/metadata.name"
    ) == NAMESPACE  # fmt: skip


def reaches(
    policies: list[Object], source: Peer, target: Peer, port: int, protocol: str = "TCP"
) -> bool:
    for peer, other, kind, side in (
        (source, target, "Egress", "to"), (target, source, "Ingress", "from"),
    ):  # fmt: skip
        if not inside(peer):
            continue
        governing = list(policies_of(policies, peer, kind))
        assert governing, "a pod that no policy governs"
        rules = [rule for each in governing for rule in each["spec"].get(kind.lower(), [])]
        if not any(admits(rule, side, other, protocol, port) for rule in rules):
            return False
    return True


HEAD, GATEWAY, ENGINE, REDIS = role("head"), role("gateway"), role("engine"), role("redis")
GATE, MIGRATION = role("gate"), role("migration")
ALLOWED = [
    (HEAD, ENGINE, 41234), (ENGINE, HEAD, 6379), (GATEWAY, ENGINE, 30001), (HEAD, REDIS, 6379),
    (GATEWAY, PROVIDER, 443), (GATEWAY, DATABASE, 5432), (MIGRATION, DATABASE, 5432),
    (ENGINE, PROVIDER, 443), (GATE, PROVIDER, 443), (CLIENT, GATEWAY, 8000),
    (CLIENT, ENGINE, 8000), (OPERATOR, HEAD, 8265), (OPERATOR, ENGINE, 8000),
    (MONITORING, ENGINE, 9464), (MONITORING, GATEWAY, 9464), (MONITORING, HEAD, 8080),
]  # fmt: skip
REFUSED = [
    # The database and the frontier's keys belong to gateways.
    (ENGINE, DATABASE, 5432), (HEAD, DATABASE, 5432), (HEAD, PROVIDER, 443),
    (MIGRATION, PROVIDER, 443), (GATE, DATABASE, 5432),
    # Ray's ports execute code.
    (CLIENT, HEAD, 8265), (CLIENT, GATEWAY, 6379), (CLIENT, ENGINE, 30001),
    (STRANGER, GATEWAY, 8000), (STRANGER, HEAD, 10001), (MONITORING, HEAD, 8265),
    (GATE, HEAD, 8265), (MIGRATION, HEAD, 8265),
    (ENGINE, REDIS, 6379), (GATEWAY, REDIS, 6379), (CLIENT, REDIS, 6379), (REDIS, HEAD, 6379),
    (REDIS, PROVIDER, 443),
    # A cloud's credentials of the node.
    (GATEWAY, METADATA, 80), (ENGINE, METADATA, 443),
    (GATEWAY, PROVIDER, 22),
]  # fmt: skip


@pytest.mark.parametrize("name", OVERLAYS)
def test_each_pod_reaches_what_it_needs(name: str) -> None:
    policies = of_kind(overlay(name), "NetworkPolicy")
    for source, target, port in ALLOWED:
        assert reaches(policies, source, target, port), (source, target, port)
    for pod in (HEAD, GATEWAY, ENGINE, REDIS, GATE, MIGRATION):
        assert reaches(policies, pod, DNS, 53, "UDP")


@pytest.mark.parametrize("name", OVERLAYS)
def test_no_pod_reaches_anything_else(name: str) -> None:
    policies = of_kind(overlay(name), "NetworkPolicy")
    for source, target, port in REFUSED:
        assert not reaches(policies, source, target, port), (source, target, port)


def test_every_opening_states_its_reason_and_every_pod_is_governed() -> None:
    for name in OVERLAYS:
        policies = of_kind(overlay(name), "NetworkPolicy")
        assert all(each["metadata"]["annotations"]["narrowgate.dev/reason"] for each in policies)
        for template in pod_templates(overlay(name)).values():
            labels = tuple(template["metadata"]["labels"].items())
            for kind in ("Ingress", "Egress"):
                assert list(policies_of(policies, Peer(labels), kind))


def test_without_the_default_a_stranger_gets_in() -> None:
    """The graph can fail: an opened policy is seen."""
    policies = of_kind(overlay("cpu-dev"), "NetworkPolicy")
    opened = {"metadata": {}, "spec": {"podSelector": {}, "policyTypes": ["Ingress"],
                                       "ingress": [{}]}}  # fmt: skip
    assert reaches([*policies, opened], STRANGER, GATEWAY, 8000)
