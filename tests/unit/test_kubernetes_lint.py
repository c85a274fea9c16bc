"""Each rule on an object that breaks it and on one that does not; files that are none; output."""

# ruff: noqa: E501  # a table of one line an example

import io
import json
from pathlib import Path
from typing import Any

import pytest

from serving.cli import run_program
from serving.commands import k8s
from serving.contracts.errors import InvalidRequest
from serving.kubernetes.lint.cluster import Manifests
from serving.kubernetes.lint.manifests import MAX_BYTES, read_manifests
from serving.kubernetes.lint.rules import RULES, lint

from . import kubernetes_kit as kit
from .kubernetes_kit import ABSENT

ROOT = Path(__file__).parents[2]
RAY = "spec.rayClusterConfig"
HEAD = f"{RAY}.headGroupSpec"
GATEWAY, ENGINE = f"{RAY}.workerGroupSpecs.0", f"{RAY}.workerGroupSpecs.1"
HEAD_POD, GATEWAY_POD, ENGINE_POD = (f"{g}.template.spec" for g in (HEAD, GATEWAY, ENGINE))
ENGINE_RAY = f"{ENGINE_POD}.containers.0"
APPLICATION = "spec.serveConfigV2.applications.0"
SETTINGS = "data|settings.yaml"
LLM = {
    "import_path": "ray.serve.llm:build_openai_app",
    "args": {"llm_configs": [{"model_loading_config": {"model_id": "m"}}]},
}


def slashed(path: str, *more: str) -> str:
    """Return a path with another separator, for keys that hold dots."""
    return "|".join([*path.split("."), *more])


# Rule, kind, path, value: what breaks the rule in an otherwise sound object.
BROKEN: list[tuple[str, str, str, Any]] = [
    ("K01", "RayService", slashed(f"{ENGINE}.template.metadata.annotations", "narrowgate.dev/artifact"), ABSENT),
    ("K01", "RayService", slashed(f"{ENGINE}.template.metadata.annotations", "narrowgate.dev/artifact"), "sha256-" + "00" * 32),
    ("K01", "RayService", slashed(f"{GATEWAY}.template.metadata.annotations", "narrowgate.dev/artifact"), "v2"),
    ("K01", "RayService", f"{APPLICATION}.args.artifact", ABSENT),
    ("K02", "RayService", f"{ENGINE_POD}.terminationGracePeriodSeconds", 30),
    ("K02", "RayService", f"{GATEWAY_POD}.terminationGracePeriodSeconds", ABSENT),
    ("K02", "RayService", f"{APPLICATION}.deployments.0.graceful_shutdown_timeout_s", 300),
    ("K02", "ConfigMap", f"{SETTINGS}|gateway|drain_timeout_s", 20),
    ("K03", "RayService", "spec.rayClusterDeletionDelaySeconds", ABSENT),
    ("K03", "ConfigMap", f"{SETTINGS}|gateway|request_timeout_s", 600),
    ("K04", "RayService", f"{ENGINE_RAY}.image", "registry.example/other@sha256:" + "ee" * 32),
    ("K04", "RayService", f"{GATEWAY_POD}.containers.0.env.+", {"name": "RAY_SERVE_THROUGHPUT_OPTIMIZED", "value": "1"}),
    ("K04", "RayService", f"{RAY}.rayVersion", ABSENT),
    ("K05", "RayService", f"{ENGINE_POD}.enableServiceLinks", ABSENT),
    ("K05", "RayService", f"{HEAD_POD}.enableServiceLinks", True),
    ("K06", "RayService", f"{HEAD}.rayStartParams.num-cpus", ABSENT),
    ("K06", "RayService", f"{APPLICATION}.deployments.0.ray_actor_options.num_cpus", 0),
    ("K08", "RayService", f"{ENGINE}.rayStartParams.num-gpus", "1"),
    ("K09", "RayService", f"{ENGINE_RAY}.readinessProbe", ABSENT),
    ("K09", "RayService", f"{ENGINE_RAY}.startupProbe", {"httpGet": {"path": "/health", "port": 8000}}),
    ("K10", "RayService", f"{ENGINE_RAY}.lifecycle.preStop.exec.command", ["/bin/sh", "-c", "ray stop"]),
    ("K11", "PodDisruptionBudget", "spec.minAvailable", "50%"),
    ("K11", "PodDisruptionBudget", "spec.maxUnavailable", 1),
    ("K11", "PodMonitor", "", {"kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"}, "spec": {"scaleTargetRef": {"kind": "RayCluster", "name": "r"}}}),
    ("K12", "RayService", f"{APPLICATION}.args.openai_api_key", "abc"),
    ("K12", "RayService", f"{ENGINE_RAY}.env.+", {"name": "HF_TOKEN", "value": "hf_" + "a" * 30}),
    ("K12", "ConfigMap", f"{SETTINGS}|ledger|url", "postgresql://narrowgate:hunter2@db/ledger"),
    ("K13", "ConfigMap", f"{SETTINGS}|ledger|url_file", ABSENT),
    ("K13", "ConfigMap", f"{SETTINGS}|state", ".narrowgate"),
    ("K13", "ConfigMap", f"{SETTINGS}|auth|mode", "off"),
    ("K13", "ConfigMap", f"{SETTINGS}|attestation|development", True),
    ("K13", "ConfigMap", f"{SETTINGS}|gateway|host", "127.0.0.1"),
    ("K14", "RayService", "spec.serveConfigV2.applications.+", LLM),
    ("K14", "RayService", f"{APPLICATION}.deployments.0.max_surge_percent", 0),
    ("K15", "RayService", f"{GATEWAY_POD}.containers.0.image", "registry.example/narrowgate:latest"),
    ("K15", "RayService", f"{GATEWAY_POD}.containers.0.imagePullPolicy", ABSENT),
    ("K16", "RayService", slashed(f"{ENGINE_RAY}.resources.limits", "nvidia.com/gpu"), ABSENT),
    ("K16", "RayService", f"{ENGINE_RAY}.resources.limits.memory", "48Gi"),
    ("K16", "RayService", f"{ENGINE_RAY}.resources.limits.cpu", "6"),
    ("K16", "RayService", f"{GATEWAY_POD}.containers.0.resources.requests.ephemeral-storage", ABSENT),
    ("K17", "RayService", slashed("metadata.annotations", "ray.io/initializing-timeout"), "10m"),
    ("K17", "RayService", "spec.upgradeStrategy.type", "None"),
    ("K17", "RayService", f"{HEAD}.headService.metadata.name", "head"),
    ("K19", "RayService", f"{RAY}.gcsFaultToleranceOptions", ABSENT),
    ("K19", "RayService", f"{RAY}.gcsFaultToleranceOptions.externalStorageNamespace", "one"),
    ("K19", "RayService", f"{RAY}.gcsFaultToleranceOptions.redisPassword", {"value": "secret"}),
    ("K20", "RayService", f"{ENGINE_POD}.automountServiceAccountToken", ABSENT),
    ("K20", "NetworkPolicy", "spec.egress", []),
    ("K20", "RayService", f"{RAY}.enableInTreeAutoscaling", True),
    ("K21", "RayService", f"{ENGINE_RAY}.env.+", {"name": "LD_LIBRARY_PATH", "value": "/usr/local/cuda/compat"}),
    ("K21", "RayService", f"{ENGINE_RAY}.volumeMounts", [{"name": "tmp", "mountPath": "/tmp"}]),  # noqa: S108
    ("K22", "RayService", f"{ENGINE_RAY}.env.+", {"name": "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "value": "0"}),
    ("K23", "PodMonitor", "", {"kind": "ServiceMonitor", "metadata": {"name": "m"}, "spec": {"selector": {"matchLabels": {"ray.io/serve": "x"}}}}),
    ("K24", "ConfigMap", f"{SETTINGS}|models", [{"id": "m", "source": "meta-llama/Llama-3-8B"}]),
    ("K24", "RayService", f"{APPLICATION}.args.model_source", "s3://bucket/model"),
]  # fmt: skip


def sound() -> dict[str, dict[str, Any]]:
    return kit.documents()


def found(documents: dict[str, dict[str, Any]]) -> set[str]:
    return {finding.rule for finding in lint(kit.read(documents))}


def test_a_sound_cluster_has_no_finding() -> None:
    assert lint(kit.read(sound())) == []


@pytest.mark.parametrize(("rule", "kind", "path", "value"), BROKEN)
def test_a_rule_finds_what_breaks_it(rule: str, kind: str, path: str, value: Any) -> None:
    documents = sound()
    if path:
        kit.spoil(documents[kind], path, value)
    else:
        documents[kind] = value
    findings = [each for each in lint(kit.read(documents)) if each.rule == rule]
    assert findings
    lines = kit.written(documents).splitlines()
    for each in findings:
        assert each.file == "all.yaml"
        assert 1 <= each.line <= len(lines)
        assert each.message


def test_incremental_upgrades() -> None:
    documents = sound()
    kit.spoil(
        documents["RayService"], "spec.upgradeStrategy.type", "NewClusterWithIncrementalUpgrade"
    )
    assert found(documents) == set()
    documents["Ingress"] = {
        "kind": "Ingress", "metadata": {"name": "i"},
        "spec": {"rules": [{"http": {"paths": [
            {"backend": {"service": {"name": "narrowgate-serve-svc"}}}]}}]},
    }  # fmt: skip
    assert found(documents) == {"K18"}
    del documents["Ingress"]
    documents["HTTPRoute"] = {
        "kind": "HTTPRoute", "metadata": {"name": "h"},
        "spec": {"rules": [{"backendRefs": [{"name": "narrowgate-serve-svc", "port": 8000}]}]},
    }  # fmt: skip
    assert found(documents) == {"K18"}


def test_a_group_that_scales_from_zero_needs_its_accelerator() -> None:
    documents = sound()
    service = documents["RayService"]
    kit.spoil(service, f"{RAY}.enableInTreeAutoscaling", True)
    kit.spoil(service, f"{HEAD_POD}.automountServiceAccountToken", True)
    kit.spoil(service, f"{APPLICATION}.args.accelerator_type", "A10G")
    egress = documents["NetworkPolicy"]["spec"]["egress"]
    egress.append({"ports": [{"port": 443}]})
    assert found(documents) == set()
    kit.spoil(service, slashed(f"{ENGINE}.resources", "accelerator_type:A10G"), ABSENT)
    assert found(documents) == {"K07"}


def test_the_sampler_counts_on_gpus_alone() -> None:
    documents = sound()
    engine = documents["RayService"]["spec"]["rayClusterConfig"]["workerGroupSpecs"][1]
    container = engine["template"]["spec"]["containers"][0]
    container["env"] = [each for each in container["env"] if "SAMPLER" not in each["name"]]
    assert found(documents) == {"K21"}


def test_variables_of_a_config_map_at_hand_count() -> None:
    documents = sound()
    documents["Environment"] = {
        "kind": "ConfigMap", "metadata": {"name": "ray-environment"},
        "data": {"SERVE_THROUGHPUT_OPTIMIZED": "1"},
    }  # fmt: skip
    source = {"prefix": "RAY_", "configMapRef": {"name": "ray-environment"}}
    for pod in (HEAD_POD, GATEWAY_POD, ENGINE_POD):
        assert found(documents) == (set() if pod == HEAD_POD else {"K04"})
        kit.spoil(documents["RayService"], f"{pod}.containers.0.envFrom", [source])
    assert found(documents) == set()
    # `env` is the stronger one.
    variable = {"name": "RAY_SERVE_THROUGHPUT_OPTIMIZED", "value": "0"}
    kit.spoil(documents["RayService"], f"{GATEWAY_POD}.containers.0.env.+", variable)
    assert found(documents) == {"K04"}


def test_variables_of_a_config_map_that_is_not_at_hand_are_not_known() -> None:
    documents = sound()
    source = {"configMapRef": {"name": "elsewhere"}}
    kit.spoil(documents["RayService"], f"{GATEWAY_POD}.containers.0.envFrom", [source])
    assert found(documents) == set()


def test_every_rule_has_an_example_that_breaks_it() -> None:
    apart = {"K07", "K18"}  # two values break these: tests of their own
    assert {rule for rule, *_ in BROKEN} | apart == {rule.id for rule in RULES}
    assert [rule.id for rule in RULES] == [f"K{number:02}" for number in range(1, 25)]


def test_findings_point_at_the_line() -> None:
    documents = sound()
    kit.spoil(documents["ConfigMap"], f"{SETTINGS}|gateway|host", "localhost")
    kit.spoil(documents["RayService"], f"{APPLICATION}.args.api_key", "hunter2")
    lines = kit.written(documents).splitlines()
    by_rule = {each.rule: lines[each.line - 1] for each in lint(kit.read(documents))}
    assert by_rule == {"K13": "      host: localhost", "K12": "        api_key: hunter2"}


def test_numbers_of_hundreds_of_digits_are_read() -> None:
    documents = sound()
    for path in ("spec|serviceUnhealthySecondThreshold", f"{APPLICATION}.args.max_tokens"):
        kit.spoil(documents["RayService"], path.replace("|", "."), 10**400)
    kit.spoil(documents["RayService"], "spec.rayClusterDeletionDelaySeconds", 10**350)
    found(documents)


def test_a_secret_by_reference_is_none() -> None:
    documents = sound()
    for key, value in (("token_file", "abc"), ("max_tokens", "5"), ("password", "$(PASSWORD)"),
                       ("api_key", "/run/secrets/key"), ("tokenizer", "gpt2")):  # fmt: skip
        kit.spoil(documents["RayService"], f"{APPLICATION}.args.{key}", value)
    assert found(documents) == set()


def test_somebody_elses_ray_service_is_judged_without_our_settings() -> None:
    documents = {"RayService": sound()["RayService"]}
    service = documents["RayService"]
    service["spec"]["serveConfigV2"] = {"applications": [{"import_path": "fruit:app"}]}
    config = service["spec"]["rayClusterConfig"]
    for group in (config["headGroupSpec"], *config["workerGroupSpecs"]):
        del group["template"]["metadata"]
    assert found(documents) == set()


def test_a_ray_cluster_alone_is_judged() -> None:
    config = sound()["RayService"]["spec"]["rayClusterConfig"]
    cluster = {"kind": "RayCluster", "metadata": {"name": "r"}, "spec": config}
    assert found({"RayCluster": cluster}) == set()
    config["headGroupSpec"]["template"]["spec"]["enableServiceLinks"] = True
    assert found({"RayCluster": cluster}) == {"K05"}


def test_lists_and_several_documents_are_read() -> None:
    text = "kind: List\nitems:\n- kind: RayCluster\n  metadata: {name: a}\n---\nkind: Secret\n---\n"
    kinds = [resource.kind for resource in read_manifests("f", text.encode())]
    assert kinds == ["RayCluster", "Secret"]


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe\x00x", "is not UTF-8"),
        (b"a: [1, 2", "is not YAML"),
        (b"a: b: c", "is not YAML"),
        (b"- 1\n- 2\n", "without a kind"),
        (b"just words", "without a kind"),
        (b"x" * (MAX_BYTES + 1), "at most"),
        (b"[" * 5000, "nests deeper"),
        # Deep enough to end the process inside libyaml.
        (b"a: " + b"[" * 200_000, "nests deeper"),
        (b"- " * 200_000, "nests deeper"),
        (b"a: [" + b"x," * 600_000 + b"]", "more than"),
        (b"kind: Secret\nkind: RayService\n", r"the key 'kind' twice \(line 2\)"),
        (BOMB.encode(), "without a kind"),
        (b"\x00\x01\x02", "is not YAML"),
    ],
)
def test_a_file_that_holds_no_manifests_is_told(content: bytes, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as caught:
        read_manifests("bad.yaml", content)
    assert "'bad.yaml'" in caught.value.message
    assert caught.value.fix


@pytest.mark.parametrize("kind", ["5", "true", "1.5", "2026-01-01"])
def test_a_kind_may_be_anything(kind: str) -> None:
    (resource,) = read_manifests("f", f"kind: {kind}\nitems: []\n".encode())
    assert resource.kind == kind


def test_a_list_may_hold_itself_and_others_many_times() -> None:
    itself = "kind: List\nitems: &i\n- kind: List\n  items: *i\n- kind: Secret\n"
    assert [each.kind for each in read_manifests("f", itself.encode())] == ["Secret"]
    levels = "".join(
        f"- &l{n} {{kind: List, items: [{', '.join([f'*l{n - 1}'] * 9)}]}}\n" for n in range(1, 20)
    )
    many = f"kind: List\nitems:\n- &l0 {{kind: Secret}}\n{levels}"
    assert [each.kind for each in read_manifests("f", many.encode())] == ["Secret"]
    long = f"kind: Secret\ndata: {'9' * 6001}\n"
    assert [each.kind for each in read_manifests("f", long.encode())] == ["Secret"]


def test_merged_keys_count() -> None:
    text = (
        "kind: RayCluster\nbase: &pod {enableServiceLinks: false, containers: [{name: ray}]}\n"
        "spec:\n  headGroupSpec:\n    template:\n"
        "      spec: {<<: *pod, containers: [{name: own}]}\n"
    )
    (resource,) = read_manifests("f", text.encode())
    (cluster,) = Manifests([resource]).clusters
    assert cluster.head.pod["enableServiceLinks"] is False
    assert cluster.head.pod.line_of("enableServiceLinks") == 2
    assert cluster.head.ray.fields["name"] == "own"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{applications: []}", "is not a string"),
        ("5", "is not a string"),
        ("|\n    applications: [", "is not a YAML mapping"),
        ("|\n    - applications", "is not a YAML mapping"),
        ("|\n    a: 1\n    a: 2", "has a key twice"),
        (f"{'[' * 50_000!r}", "is not a YAML mapping"),
    ],
)
def test_a_serve_config_that_cannot_be_read_is_told(
    config: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(f"kind: RayService\nmetadata: {{name: s}}\nspec:\n  serveConfigV2: {config}\n")
    assert command(str(path)) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "line 4: serveConfigV2 of RayService 's'" in err


def test_fault_tolerance_by_annotation_counts() -> None:
    documents = sound()
    service = documents["RayService"]
    del service["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]
    assert found(documents) == {"K19"}
    service["metadata"]["annotations"] = {"ray.io/ft-enabled": "true"}
    redis = {"name": "RAY_REDIS_ADDRESS", "value": "redis:6379"}
    kit.spoil(service, f"{HEAD_POD}.containers.0.env.+", redis)
    assert found(documents) == set()
    service["metadata"]["annotations"]["ray.io/external-storage-namespace"] = "one"
    assert found(documents) == {"K19"}


def test_aliases_of_aliases_cost_nothing() -> None:
    kind = b"kind: RayService\nspec: {serveConfigV2: '{}'}\n"
    (resource,) = read_manifests("f", kind + BOMB.encode())
    lint([resource])
    assert Manifests([resource]).clusters


@pytest.mark.parametrize(
    "value", [None, 3, "text", [], {}, [None], {"a": None}, [{"name": None}], True, [["x"]]]
)
@pytest.mark.parametrize(
    "path",
    ["spec", RAY, "spec.serveConfigV2", HEAD, f"{RAY}.workerGroupSpecs", HEAD_POD, ENGINE_RAY,
     f"{ENGINE_RAY}.env", f"{ENGINE_RAY}.resources", f"{ENGINE_RAY}.image", APPLICATION,
     f"{ENGINE_POD}.containers", f"{ENGINE_POD}.terminationGracePeriodSeconds", "metadata"],
)  # fmt: skip
def test_no_value_of_a_wrong_type_is_a_defect(path: str, value: Any) -> None:
    documents = sound()
    kit.spoil(documents["RayService"], path, value)
    lint(kit.read(documents))


def command(*words: str) -> int:
    return run_program("narrowgate", "test", {"k8s": k8s}, ["k8s", "lint", *words])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    documents = sound()
    kit.spoil(documents["RayService"], f"{ENGINE_POD}.enableServiceLinks", True)
    path = tmp_path / "all.yaml"
    path.write_text(kit.written(documents), encoding="utf-8")
    return path


def test_the_command_prints_findings_with_place_reason_and_fix(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(str(file)) == 1
    out = capsys.readouterr().out
    assert f"{file}:" in out
    assert "error K05: enableServiceLinks of worker group 'engine' is not false" in out
    assert "fix: set enableServiceLinks: false" in out
    assert command(str(file), "--ignore", "K05") == 0
    assert "5 objects, 0 findings" in capsys.readouterr().out


def test_the_command_reads_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = io.TextIOWrapper(io.BytesIO(kit.written(sound()).encode()))
    monkeypatch.setattr("sys.stdin", source)
    assert command("-") == 0
    assert "0 findings" in capsys.readouterr().out


def test_json_and_sarif(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(str(file), "--json") == 1
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert (finding["rule"], finding["level"]) == ("K05", "error")
    assert command(str(file), "--sarif") == 1
    document = json.loads(capsys.readouterr().out)
    (run,) = document["runs"]
    (result,) = run["results"]
    rule = run["tool"]["driver"]["rules"][result["ruleIndex"]]
    assert document["version"] == "2.1.0"
    assert result["ruleId"] == rule["id"] == "K05"
    place = result["locations"][0]["physicalLocation"]
    assert place["region"]["startLine"] == finding["line"]
    assert place["artifactLocation"]["uri"].endswith("all.yaml")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no file is named"),
        (["/nonexistent/x.yaml"], "cannot be read"),
        (["--ignore", "K99", "FILE"], "no rule has the id 'K99'"),
    ],
)
def test_wrong_arguments_are_told(
    words: list[str], said: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*(str(file) if word == "FILE" else word for word in words)) == 2
    assert said in capsys.readouterr().err


def test_manifests_without_a_cluster_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("kind: Secret\nmetadata: {name: s}\n")
    assert command(str(path)) == 2
    assert "is a RayService or a RayCluster" in capsys.readouterr().err


def test_the_page_lists_the_rules() -> None:
    page = (ROOT / "docs" / "kubernetes-lint.md").read_text(encoding="utf-8")
    for rule in RULES:
        assert f"| {rule.id} | {rule.level} | {rule.title} | {rule.reason} | {rule.fix} |" in page


def test_the_rules_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--rules", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert [each["id"] for each in listed] == [rule.id for rule in RULES]
    assert all(each["source"] for each in listed)
