"""The admission policy: its CEL expressions on objects that it must let in and must refuse."""

import copy
import json
from typing import Any

import pytest
from cel_expr_python import cel
from cel_expr_python.ext import ext_strings

from .manifest_kit import K8S, Object, build, of_kind, ray_service

ADMISSION = build(K8S / "components" / "admission")
(POLICY,) = of_kind(ADMISSION, "ValidatingAdmissionPolicy")
(BINDING,) = of_kind(ADMISSION, "ValidatingAdmissionPolicyBinding")
KNOWN = "sha256-" + "1" * 64
OTHER = "sha256-" + "2" * 64
PLACEHOLDER = "sha256-" + "0" * 64
_ENV = cel.NewEnv(
    variables=dict.fromkeys(("object", "params", "variables"), cel.Type.DYN),
    extensions=[ext_strings.ExtStrings()],
)


def evaluated(expression: str, **data: Any) -> Any:
    value = _ENV.compile(expression).eval(data=data)
    found = value.plain_value()
    assert not isinstance(found, Exception)
    return found


def refusals(found: Object, attested: dict[str, str] | None) -> list[str]:
    """Return the messages with which the API server would refuse an object."""
    params: Object = {} if attested is None else {"data": attested}
    spec = POLICY["spec"]
    for condition in spec["matchConditions"]:
        if not evaluated(condition["expression"], object=found, params=params, variables={}):
            return []
    variables: dict[str, Any] = {}
    for each in spec["variables"]:
        variables[each["name"]] = evaluated(
            each["expression"], object=found, params=params, variables=variables
        )
    said = []
    for rule in spec["validations"]:
        data = {"object": found, "params": params, "variables": variables}
        if evaluated(rule["expression"], **data) is not True:
            said.append(
                evaluated(rule["messageExpression"], **data)
                if "messageExpression" in rule
                else rule["message"]
            )
    return said


def service(digest: str = KNOWN) -> Object:
    text = json.dumps(ray_service("cpu-dev")).replace(PLACEHOLDER, digest)
    found: Object = json.loads(text)
    return found


def cluster(digest: str = KNOWN) -> Object:
    spec = service(digest)["spec"]["rayClusterConfig"]
    return {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {}, "spec": spec}


ATTESTED = {KNOWN: "run 1"}


@pytest.mark.parametrize("made", [service, cluster])
def test_an_attested_model_is_let_in(made: Any) -> None:
    assert refusals(made(), ATTESTED) == []


@pytest.mark.parametrize("made", [service, cluster])
@pytest.mark.parametrize("attested", [{OTHER: "run 2"}, {}, None])
def test_a_model_that_ci_has_not_attested_is_refused_by_name(
    made: Any, attested: dict[str, str] | None
) -> None:
    (message, *_) = refusals(made(), attested)
    assert message.startswith(f"not attested: {KNOWN}")


def test_a_service_without_the_annotation_is_refused() -> None:
    found = service()
    for group in found["spec"]["rayClusterConfig"]["workerGroupSpecs"]:
        del group["template"]["metadata"]["annotations"]["narrowgate.dev/artifact"]
    assert any("no worker group" in message for message in refusals(found, ATTESTED))
    for group in found["spec"]["rayClusterConfig"]["workerGroupSpecs"]:
        del group["template"]["metadata"]
    assert any("no worker group" in message for message in refusals(found, ATTESTED))


def test_one_group_of_another_model_is_refused() -> None:
    found = service()
    groups = found["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    groups[1]["template"]["metadata"]["annotations"]["narrowgate.dev/artifact"] = OTHER
    assert any(OTHER in message for message in refusals(found, ATTESTED))


def test_a_serve_config_of_another_model_is_refused() -> None:
    found = service()
    found["spec"]["serveConfigV2"] = found["spec"]["serveConfigV2"].replace(KNOWN, OTHER)
    assert any("another artifact" in message for message in refusals(found, ATTESTED))
    del found["spec"]["serveConfigV2"]
    assert refusals(found, ATTESTED) != []


def test_a_deletion_is_never_blocked() -> None:
    found = copy.deepcopy(service(OTHER))
    found["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert refusals(found, ATTESTED) == []


def test_the_policy_fails_closed_and_covers_both_kinds() -> None:
    spec = POLICY["spec"]
    assert spec["failurePolicy"] == "Fail"
    (rule,) = spec["matchConstraints"]["resourceRules"]
    assert set(rule["resources"]) == {"rayservices", "rayclusters"}
    assert set(rule["operations"]) == {"CREATE", "UPDATE"}
    binding = BINDING["spec"]
    assert binding["validationActions"] == ["Deny"]
    assert binding["paramRef"]["parameterNotFoundAction"] == "Deny"
    (namespace,) = of_kind(build(K8S / "base"), "Namespace")
    wanted = binding["matchResources"]["namespaceSelector"]["matchLabels"]
    assert wanted.items() <= namespace["metadata"]["labels"].items()
