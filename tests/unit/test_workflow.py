"""The workflows: least permissions, pinned actions, and every shell step of the model gate.

The shell steps run with fake programs on the PATH. The fakes record their arguments, and the real
argument parsers then read those arguments.
"""

import argparse
import base64
import hashlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner

from serving.cli import narrowgate_parser

ROOT = Path(__file__).parents[2]
WORKFLOWS = {
    path.stem: path.read_text(encoding="utf-8")
    for path in sorted((ROOT / ".github" / "workflows").glob("*.yml"))
}
TEXT = WORKFLOWS["model-gate"]
# YAML 1.1 reads the key `on` as true.
WORKFLOW: dict[Any, Any] = yaml.safe_load(TEXT)
TEST_WORKFLOW: dict[Any, Any] = yaml.safe_load(WORKFLOWS["test"])
IMAGE_WORKFLOW: dict[Any, Any] = yaml.safe_load(WORKFLOWS["image"])
JOBS: dict[str, dict[str, Any]] = WORKFLOW["jobs"]
DOCUMENT = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")

STEPS = [(job, step) for job, content in JOBS.items() for step in content["steps"]]
MODEL = "meta-llama/Meta-Llama-3-8B-Instruct"
COMMIT = "8afb486c1db24fe5011ec46dfbe5b5dccdb575c2"
SETTINGS = {
    "MODEL": MODEL, "REVISION": COMMIT, "RECIPE": "int8-w8a8", "BASELINE": "/hub/snapshot",
    "MARGINS": "sentiment=0.02\ntopic=0.02", "CONFIG": "settings.yaml", "HF_TOKEN": "",
    "SIGNING_KEY": "-- a key --", "PUBLIC_KEY": "-- a public key --", "PULL_REQUEST": "7",
    "GH_TOKEN": "token", "STORE": "/store", "OVERLAY": "", "UPLOAD": "",
}  # fmt: skip

# Records its arguments as one line of JSON, prints $SAYS and exits with $STATUS.
FAKE_PROGRAM = f"""#!{sys.executable} -S
import json, os, sys
with open(os.environ["CALLS"], "a") as calls:
    calls.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
print(os.environ.get("SAYS", ""))
sys.exit(int(os.environ.get("STATUS", "0")))
"""


@dataclass
class Runner:
    """A machine with fake programs and an empty checkout."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("bin", "temp", "checkout"):
            (self.folder / name).mkdir()
        for name in ("narrowgate", "hf", "gh"):
            program = self.folder / "bin" / name
            program.write_text(FAKE_PROGRAM, encoding="utf-8")
            program.chmod(0o755)
        self.environment = {
            "PATH": f"{self.folder / 'bin'}:/usr/bin:/bin",
            "RUNNER_TEMP": str(self.temp),
            "CALLS": str(self.folder / "calls"),
            "GITHUB_OUTPUT": str(self.folder / "output"),
            "GITHUB_STEP_SUMMARY": str(self.folder / "summary"),
            "GITHUB_EVENT_NAME": "pull_request",
            "GITHUB_SERVER_URL": "https://github.example",
            "GITHUB_REPOSITORY": "acme/models",
            "GITHUB_RUN_ID": "1",
        }

    @property
    def temp(self) -> Path:
        return self.folder / "temp"

    @property
    def checkout(self) -> Path:
        return self.folder / "checkout"

    def run(self, step: Mapping[str, Any], **also: str) -> subprocess.CompletedProcess[str]:
        """Run a step as GitHub runs it with `shell: bash`."""
        script = self.folder / "step.sh"
        script.write_text(step["run"], encoding="utf-8")
        return subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],
            env={**self.environment, **SETTINGS, **also},
            cwd=self.checkout, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def calls(self) -> list[list[str]]:
        """Return the recorded calls and forget them."""
        file = self.folder / "calls"
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path)


def step_named(job: str, name: str) -> dict[str, Any]:
    (found,) = [step for step in JOBS[job]["steps"] if step.get("name") == name]
    return dict(found)


def position(job: str, name: str) -> int:
    return [step.get("name") for step in JOBS[job]["steps"]].index(name)


def parsed(call: list[str]) -> argparse.Namespace:
    """Parse a call of narrowgate as the program does."""
    return narrowgate_parser().parse_args(call[1:])


def documented() -> list[list[str]]:
    """Return every narrowgate command line of docs/ci.md."""
    blocks = re.findall(r"^ *```\w+\n(.*?)^ *```", DOCUMENT, re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    stripped = [line.strip().removeprefix("- ") for line in lines]
    stripped += re.findall(r"`(narrowgate [a-z]+ [^`]*)`", DOCUMENT)
    ends = {"|", "||", "&&", ";", ">"}
    return [
        list(takewhile(lambda word: word not in ends, shlex.split(line, comments=True)))
        for line in stripped
        if line.startswith("narrowgate ")
    ]


def test_each_job_has_the_permissions_that_it_needs_and_no_other() -> None:
    assert WORKFLOW["permissions"] == {}
    assert {name: job["permissions"] for name, job in JOBS.items()} == {
        "changes": {"contents": "read"},
        "gate": {"contents": "read"},
        "comment": {"pull-requests": "write"},
        "release": {"contents": "read"},
        "verdict": {},
    }
    assert IMAGE_WORKFLOW["permissions"] == {}
    assert IMAGE_WORKFLOW["jobs"]["image"]["permissions"] == {
        "contents": "read",
        "packages": "write",
    }
    assert TEST_WORKFLOW["permissions"] == {}
    for job in TEST_WORKFLOW["jobs"].values():
        assert job["permissions"] == {"contents": "read"}


def test_the_model_gate_runs_only_when_another_workflow_calls_it() -> None:
    assert set(WORKFLOW[True]) == {"workflow_call"}
    call = WORKFLOW[True]["workflow_call"]
    assert set(call["inputs"]) == {
        "model", "revision", "recipe", "margins", "overlay", "admission",
    }  # fmt: skip
    read = set(re.findall(r"secrets\.(\w+)", TEXT))
    assert set(call["secrets"]) == read
    # The environment of the calling repository holds them; the caller need not pass them by name.
    assert not any(secret["required"] for secret in call["secrets"].values())


def test_the_documented_caller_fits_the_reusable_workflow() -> None:
    (block,) = [
        block
        for block in re.findall(r"^```yaml\n(.*?)^```", DOCUMENT, re.DOTALL | re.MULTILINE)
        if "uses:" in block
    ]
    caller = yaml.safe_load(block)
    triggers = caller[True]
    # A path filter leaves the required check pending; pull_request_target gives forks secrets.
    assert set(triggers) == {"workflow_dispatch", "pull_request"}
    assert triggers["pull_request"] is None
    (job,) = caller["jobs"].values()
    assert re.fullmatch(
        r"[\w-]+/[\w-]+/\.github/workflows/model-gate\.yml@[0-9a-f]{40}", job["uses"]
    )
    call = WORKFLOW[True]["workflow_call"]
    assert set(job["with"]) <= set(call["inputs"])
    assert set(triggers["workflow_dispatch"]["inputs"]) == set(job["with"])
    # A called workflow gets no permission that its caller lacks.
    needed = {name for called in JOBS.values() for name in called["permissions"].items()}
    assert needed == set(job["permissions"].items())
    assert job["secrets"] == "inherit"


def test_the_test_workflow_runs_the_tests_and_their_coverage_on_every_pull_request() -> None:
    assert TEST_WORKFLOW[True] == {"pull_request": None, "push": {"branches": ["main"]}}
    runs = {
        name: [step["run"] for step in job["steps"] if "run" in step]
        for name, job in TEST_WORKFLOW["jobs"].items()
    }
    assert runs == {"test": ["make test"], "coverage": ["make coverage"]}
    for job in TEST_WORKFLOW["jobs"].values():
        (python,) = [step for step in job["steps"] if "setup-python" in step.get("uses", "")]
        assert python["with"]["python-version"] == "3.11"
        assert job["timeout-minutes"] <= 90
    assert "secrets." not in WORKFLOWS["test"]


def test_the_nightly_workflow_runs_what_make_test_leaves_out() -> None:
    workflow: dict[Any, Any] = yaml.safe_load(WORKFLOWS["nightly"])
    assert workflow[True]["schedule"]
    runs = [
        step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step
    ]
    assert "make test-slow" in runs
    assert "sudo make test-cluster" in runs
    assert any(
        "promtool --version" in run and "test_kubernetes_monitoring.py" in run for run in runs
    )
    assert "secrets." not in WORKFLOWS["nightly"]


def test_a_tag_builds_the_wheel_and_compares_what_a_request_costs() -> None:
    workflow: dict[Any, Any] = yaml.safe_load(WORKFLOWS["release"])
    assert workflow[True]["push"] == {"tags": ["v*"]}
    assert workflow["permissions"] == {}
    (job,) = workflow["jobs"].values()
    assert job["permissions"] == {"contents": "read"}
    runs = {step["name"]: step["run"] for step in job["steps"] if "run" in step}
    assert "uv build --wheel" in runs["Build the wheel"]
    assert "secrets." not in WORKFLOWS["release"]
    (upload,) = [step for step in job["steps"] if "upload-artifact" in step.get("uses", "")]
    # The figures of a run that fails are what shows why.
    assert upload["if"] == "${{ !cancelled() }}"
    assert upload["with"]["path"].split() == ["dist/*.whl", "bench-check.json"]


@pytest.mark.parametrize("status", ["0", "1"])
def test_the_release_keeps_the_figures_and_ends_as_the_comparison_does(
    runner: Runner, status: str
) -> None:
    make = runner.folder / "bin" / "make"
    make.write_text(FAKE_PROGRAM, encoding="utf-8")
    make.chmod(0o755)
    (job,) = yaml.safe_load(WORKFLOWS["release"])["jobs"].values()
    (step,) = [s for s in job["steps"] if s.get("name", "").startswith("Compare")]
    found = runner.run(step, STATUS=status, SAYS='{"rows": []}')
    assert found.returncode == int(status)
    assert runner.calls() == [["make", "--silent", "bench-check", "BENCH_ARGS=--json"]]
    assert (runner.checkout / "bench-check.json").read_text(encoding="utf-8") == '{"rows": []}\n'


@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_action_is_pinned_by_commit_with_its_version(name: str) -> None:
    used = re.findall(r"uses: *(.*)", WORKFLOWS[name])
    assert used
    for action in used:
        assert re.fullmatch(r"[\w.-]+(/[\w.-]+)+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action


@pytest.mark.parametrize("name", WORKFLOWS)
def test_checkouts_leave_no_token_behind(name: str) -> None:
    steps = [s for job in yaml.safe_load(WORKFLOWS[name])["jobs"].values() for s in job["steps"]]
    checkouts = [step for step in steps if step.get("uses", "").startswith("actions/checkout@")]
    assert checkouts
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


def test_pre_commit_runs_the_linters_of_make_lint() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    commands = {hook["entry"] for repo in hooks["repos"] for hook in repo["hooks"]}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = makefile.partition("\nlint:")[2].partition("\n\n")[0]
    linted = {
        line.strip().replace("$(VENV)", ".venv") for line in recipe.splitlines()[1:] if line.strip()
    }
    assert commands == linted


def test_every_owned_path_exists() -> None:
    lines = (ROOT / ".github" / "CODEOWNERS").read_text(encoding="utf-8").splitlines()
    rules = [line.split() for line in lines if line and not line.startswith("#")]
    assert rules[0][0] == "*"
    for pattern, *owners in rules:
        assert owners
        assert all(owner.startswith("@") for owner in owners)
        assert pattern == "*" or (ROOT / pattern.strip("/")).exists(), pattern


def test_no_shell_step_interpolates_an_expression() -> None:
    assert not [step["name"] for _, step in STEPS if "${{" in step.get("run", "")]
    assert WORKFLOW["defaults"]["run"]["shell"] == "bash"


def test_every_job_ends_and_only_the_gate_runs_on_the_gpu_machine() -> None:
    assert all(job["timeout-minutes"] <= 240 for job in JOBS.values())
    hosts = {name: job["runs-on"] for name, job in JOBS.items()}
    # A runner scale set is selected by its one name, so the labels are a variable.
    (default,) = re.findall(
        r"^\$\{\{ fromJSON\(vars\.GATE_RUNNER \|\| '(.*)'\) \}\}$", hosts.pop("gate")
    )
    assert json.loads(default) == ["self-hosted", "linux", "x64", "gpu"]
    assert set(hosts.values()) == {"ubuntu-latest"}


def test_each_secret_is_an_environments_and_goes_only_to_its_step() -> None:
    assert JOBS["gate"]["environment"] == "model-signing"
    held = {
        (job, step["name"], name)
        for job, step in STEPS
        for name in re.findall(r"secrets\.(\w+)", json.dumps(step))
    }
    assert JOBS["release"]["environment"] == "model-release"
    assert held == {
        ("release", "Make a token of the App", "RELEASE_APP_KEY"),
        ("gate", "Fetch the 16-bit model", "HF_TOKEN"),
        ("gate", "Quantize", "HF_TOKEN"),
        ("gate", "Write the key", "NARROWGATE_SIGNING_KEY"),
    }
    assert len(re.findall(r"secrets\.\w", TEXT)) == len(held)


def test_margins_are_not_read_from_the_checkout() -> None:
    assert JOBS["gate"]["env"]["MARGINS"] == "${{ inputs.margins || vars.GATE_MARGINS }}"


def test_the_key_is_private_and_is_always_removed(runner: Runner) -> None:
    key = runner.temp / "narrowgate.key"
    assert runner.run(step_named("gate", "Write the key")).returncode == 0
    assert key.read_text(encoding="utf-8") == "-- a key --\n"
    assert key.stat().st_mode & 0o777 == 0o600
    removal = step_named("gate", "Remove the key")
    assert removal["if"] == "always()"
    assert runner.run(removal).returncode == 0
    assert not key.exists()
    assert runner.run(removal).returncode == 0
    assert position("gate", "Remove the key") == position("gate", "Gate and sign") + 1


def test_a_missing_key_is_named(runner: Runner) -> None:
    done = runner.run(step_named("gate", "Write the key"), SIGNING_KEY="")
    assert done.returncode == 2
    assert "NARROWGATE_SIGNING_KEY" in done.stdout
    assert not (runner.temp / "narrowgate.key").exists()


@pytest.mark.parametrize(
    ("status", "expected"),
    [(0, ""), (1, "failed::"), (2, "not run::"), (3, "inconclusive::"), (134, "status 134")],
)
def test_the_gates_status_is_the_steps_and_is_explained(
    runner: Runner, status: int, expected: str
) -> None:
    done = runner.run(step_named("gate", "Gate and sign"), STATUS=str(status))
    assert done.returncode == status
    assert expected in done.stdout
    assert ("::error" in done.stdout) == (status != 0)


def test_the_model_is_uploaded_only_after_success_and_the_report_always() -> None:
    model = step_named("gate", "Upload the model")
    # GitHub's storage is for users without a store of their own.
    assert model["if"] == "success() && env.UPLOAD == ''"
    assert step_named("gate", "Upload the model to the store")["if"] == (
        "success() && env.UPLOAD != ''"
    )
    assert (
        position("gate", "Upload the model")
        > position("gate", "Verify")
        > position("gate", "Quantize")
    )
    # No step between may fail without failing the job.
    assert "continue-on-error" not in TEXT
    report = step_named("gate", "Upload the report for every verdict")
    assert report["if"] == "${{ !cancelled() }}"
    names = [Path(path).name for path in report["with"]["path"].split("\n") if path]
    assert names == ["report.html", "report.md", "attestation.json"]


@pytest.mark.parametrize(
    ("changes", "touched", "gate", "status"),
    [
        ("success", "false", "skipped", 0),
        ("success", "true", "success", 0),
        ("success", "true", "failure", 1),
        ("success", "true", "cancelled", 1),
        # A fork's.
        ("success", "true", "skipped", 1),
        ("failure", "", "skipped", 1),
    ],
)
def test_the_required_check_passes_only_with_a_gate_or_nothing_to_gate(
    runner: Runner, changes: str, touched: str, gate: str, status: int
) -> None:
    assert JOBS["verdict"]["if"] == "always()"
    (step,) = JOBS["verdict"]["steps"]
    assert runner.run(step, CHANGES=changes, TOUCHED=touched, GATE=gate).returncode == status


@pytest.mark.parametrize(
    ("path", "event", "touched"),
    [
        ("README.md", "pull_request", "false"),
        ("README.md", "workflow_dispatch", "true"),
        ("recipes/mine.yaml", "pull_request", "true"),
        ("tasks/urgency.yaml", "pull_request", "true"),
        ("suites/urgency/test.jsonl", "pull_request", "true"),
        (".github/workflows/model-gate.yml", "pull_request", "true"),
    ],
)
def test_files_that_a_pull_request_changes_are_detected(
    runner: Runner, path: str, event: str, touched: str
) -> None:
    checkout = runner.checkout
    git(checkout, "init", "--quiet")
    git(checkout, "commit", "--quiet", "--allow-empty", "--message", "before")
    file = runner.checkout / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("new", encoding="utf-8")
    git(checkout, "add", ".")
    git(checkout, "commit", "--quiet", "--message", "after")
    step = step_named("changes", "Check whether recipes, tasks, suites or workflows changed")
    assert runner.run(step, GITHUB_EVENT_NAME=event).returncode == 0
    assert (runner.folder / "output").read_text(encoding="utf-8") == f"touched={touched}\n"


def test_changes_that_cannot_be_seen_are_gated(runner: Runner) -> None:
    step = step_named("changes", "Check whether recipes, tasks, suites or workflows changed")
    # No repository.
    assert runner.run(step).returncode == 0
    assert (runner.folder / "output").read_text(encoding="utf-8") == "touched=true\n"


@pytest.mark.parametrize(("found", "method"), [("", "POST"), ("12\n34", "PATCH")])
def test_the_report_is_one_comment(runner: Runner, found: str, method: str) -> None:
    (runner.checkout / "report").mkdir()
    report = "# Gate\n" + "é" * 40_000
    (runner.checkout / "report" / "report.md").write_text(report, encoding="utf-8")
    step = step_named("comment", "Create the comment, or replace the comment of an earlier run")
    done = runner.run(step, SAYS=found)
    assert done.returncode == 0, done.stderr
    _, call = runner.calls()
    assert method in call
    assert ("repos/acme/models/issues/comments/12" in call) == (method == "PATCH")
    comment = (runner.checkout / "comment.md").read_text(encoding="utf-8")
    assert comment.startswith("<!-- narrowgate model-gate -->\n# Gate\n")
    assert "https://github.example/acme/models/actions/runs/1" in comment
    assert len(comment) < 65_536


def test_the_report_is_shown_where_there_is_one(runner: Runner) -> None:
    step = step_named("gate", "Show the report")
    assert runner.run(step).returncode == 0
    (runner.temp / "model").mkdir()
    (runner.temp / "model" / "report.md").write_text("# Gate\n", encoding="utf-8")
    assert runner.run(step).returncode == 0
    assert (runner.folder / "summary").read_text(encoding="utf-8") == "# Gate\n"


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (MODEL, ["hf", "download", MODEL, "--revision", COMMIT]),
        ("bundled:smollm2-135m-instruct", ["narrowgate", "materialize"]),
    ],
)
def test_the_baseline_is_fetched_from_where_it_is(
    runner: Runner, model: str, expected: list[str]
) -> None:
    step = step_named("gate", "Fetch the 16-bit model")
    assert runner.run(step, MODEL=model, SAYS="/hub/snapshot").returncode == 0
    (call,) = runner.calls()
    assert call[: len(expected)] == expected
    assert (runner.folder / "output").read_text(encoding="utf-8") == "folder=/hub/snapshot\n"


def test_a_folder_is_its_own_baseline(runner: Runner) -> None:
    step = step_named("gate", "Fetch the 16-bit model")
    assert runner.run(step, MODEL=str(runner.temp)).returncode == 0
    assert runner.calls() == []
    assert (runner.folder / "output").read_text(encoding="utf-8") == f"folder={runner.temp}\n"


def add_own_files(checkout: Path) -> None:
    for path in ("recipes/mine.yaml", "tasks/urgency.yaml", "suites/a/x.jsonl", "suites/b/x.jsonl"):
        (checkout / path).parent.mkdir(parents=True, exist_ok=True)
        (checkout / path).touch()


def calls_of(runner: Runner, name: str) -> list[list[str]]:
    done = runner.run(step_named("gate", name))
    assert done.returncode == 0, done.stderr
    return runner.calls()


def test_suites_are_checked_each(runner: Runner) -> None:
    assert calls_of(runner, "Check the suites") == []
    add_own_files(runner.checkout)
    calls = calls_of(runner, "Check the suites")
    assert [call[1:] for call in calls] == [["suite", "check", f"suites/{n}"] for n in "ab"]
    for call in calls:
        parsed(call)


@pytest.mark.parametrize("own_files", [False, True])
def test_quantize_is_called_as_it_wants(runner: Runner, own_files: bool) -> None:
    if own_files:
        add_own_files(runner.checkout)
    (call,) = calls_of(runner, "Quantize")
    arguments = parsed(call)
    assert (arguments.model, arguments.revision) == (MODEL, COMMIT)
    assert arguments.out == runner.temp / "model"
    assert arguments.held_out == ([Path("suites")] if own_files else [])
    assert arguments.tasks_dir == (Path("tasks") if own_files else None)


@pytest.mark.parametrize("own_files", [False, True])
def test_gate_is_called_as_it_wants(runner: Runner, own_files: bool) -> None:
    if own_files:
        add_own_files(runner.checkout)
    (call,) = calls_of(runner, "Gate and sign")
    suites = [value for option, value in pairwise(call) if option == "--suite"]
    assert suites == (["suites/a", "suites/b"] if own_files else ["builtin"])
    arguments = parsed(call)
    assert arguments.suite == suites
    assert arguments.margin == ["sentiment=0.02", "topic=0.02"]
    assert (arguments.baseline, arguments.candidate, arguments.key, arguments.config) == (
        Path("/hub/snapshot"), runner.temp / "model", str(runner.temp / "narrowgate.key"),
        Path("settings.yaml"),
    )  # fmt: skip
    assert arguments.tasks_dir == (Path("tasks") if own_files else None)


def test_gate_takes_what_was_not_set_from_its_defaults(runner: Runner) -> None:
    step = step_named("gate", "Gate and sign")
    assert runner.run(step, MARGINS="", CONFIG="").returncode == 0
    (call,) = runner.calls()
    assert "--margin" not in call
    assert "--config" not in call
    parsed(call)


def test_verify_is_called_as_it_wants_and_names_the_model(runner: Runner) -> None:
    attested(runner.temp / "model")
    (call,) = calls_of(runner, "Verify")
    assert (runner.temp / "narrowgate.pub").read_text(encoding="utf-8") == "-- a public key --\n"
    parsed(call)
    assert (runner.folder / "output").read_text(encoding="utf-8") == f"artifact={ARTIFACT}\n"


def test_the_store_gets_the_folder_and_the_digest(runner: Runner) -> None:
    step = step_named("gate", "Upload the model to the store")
    store = runner.folder / "store"
    command = f'mkdir -p {store}; cp -r "$1" "{store}/$2"'
    (runner.temp / "model").mkdir()
    assert runner.run(step, UPLOAD=command, ARTIFACT=ARTIFACT).returncode == 0
    assert (store / ARTIFACT).is_dir()
    # A later command of the line must not hide the failure of an earlier one.
    assert runner.run(step, UPLOAD="false; true", ARTIFACT=ARTIFACT).returncode != 0


def test_render_is_called_as_it_wants(runner: Runner) -> None:
    step = step_named("gate", "Render the overlay")
    assert runner.run(step, OVERLAY="k8s/overlays/a", ARTIFACT=ARTIFACT).returncode == 0
    (call,) = runner.calls()
    arguments = parsed(call)
    assert (arguments.settings, arguments.artifact, arguments.store, arguments.out) == (
        Path("k8s/overlays/a/settings.yaml"), ARTIFACT, "/store", runner.temp / "overlay",
    )  # fmt: skip


OVERLAY = "k8s/overlays/a"
ADMISSION = "digests.yaml"


def prepared_release(runner: Runner, digest: str, verdict: str = "pass") -> dict[str, str]:
    """Write the files that the job `release` reads; return the variables of its steps."""
    key = attested(runner.temp / "report", verdict)
    rendered, overlay = runner.temp / "overlay", runner.checkout / OVERLAY
    for folder, shown in ((rendered, digest), (overlay, OLD)):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "rayservice.yaml").write_text(f"artifact: {shown}\n", encoding="utf-8")
        (folder / "config.yaml").write_text(f"source: /models/{shown}\n", encoding="utf-8")
    (overlay / "settings.yaml").write_text(f"source: /models/{OLD}\n", encoding="utf-8")
    (runner.checkout / ADMISSION).write_text("kind: ConfigMap\ndata: {}\n", encoding="utf-8")
    return {
        "PUBLIC_KEY": key.read_text(encoding="utf-8").rstrip("\n"), "OVERLAY": OVERLAY,
        "ADMISSION": ADMISSION, "ARTIFACT": ARTIFACT,
    }  # fmt: skip


def test_the_release_takes_the_digest_from_the_signed_attestation(runner: Runner) -> None:
    variables = prepared_release(runner, ARTIFACT)
    step = step_named("release", "Verify the attestation")
    done = runner.run(step, **variables)
    assert done.returncode == 0, done.stderr
    assert (runner.folder / "output").read_text(encoding="utf-8") == f"artifact={ARTIFACT}\n"

    (runner.folder / "output").unlink()
    other = attested(runner.folder / "other").read_text(encoding="utf-8")
    done = runner.run(step, **{**variables, "PUBLIC_KEY": other})
    assert done.returncode == 1
    assert "not signed" in done.stdout

    envelope = runner.temp / "report" / "attestation.json"
    document = json.loads(envelope.read_text(encoding="utf-8"))
    payload = base64.b64decode(document["payload"]).replace(b"sentiment", b"sentimenT")
    document["payload"] = base64.b64encode(payload).decode()
    envelope.write_text(json.dumps(document), encoding="utf-8")
    assert runner.run(step, **variables).returncode == 1
    assert not (runner.folder / "output").exists()


def test_the_release_refuses_a_model_that_did_not_pass(runner: Runner) -> None:
    variables = prepared_release(runner, ARTIFACT, "inconclusive")
    done = runner.run(step_named("release", "Verify the attestation"), **variables)
    assert done.returncode == 1
    assert "did not pass: sentiment" in done.stdout


def test_the_release_changes_the_overlay_and_the_list_of_admitted_models(runner: Runner) -> None:
    variables = prepared_release(runner, ARTIFACT)
    step = step_named("release", "Change the overlay")
    # The second run finds the first run's files.
    for _ in range(2):
        done = runner.run(step, **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        for name in ("rayservice.yaml", "config.yaml", "settings.yaml"):
            text = (runner.checkout / OVERLAY / name).read_text(encoding="utf-8")
            assert ARTIFACT in text
            assert OLD not in text
        admitted = yaml.safe_load((runner.checkout / ADMISSION).read_text(encoding="utf-8"))
        assert admitted["data"] == {ARTIFACT: "https://github.example/acme/models/actions/runs/1"}


def test_the_release_refuses_an_overlay_of_another_model(runner: Runner) -> None:
    variables = prepared_release(runner, "sha256-" + "2" * 64)
    done = runner.run(step_named("release", "Change the overlay"), **variables)
    assert done.returncode == 1
    assert "another model" in done.stdout
    assert OLD in (runner.checkout / OVERLAY / "rayservice.yaml").read_text(encoding="utf-8")


def git(checkout: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
    return subprocess.run(
        ["git", *who, *arguments], cwd=checkout, check=True, capture_output=True, text=True
    ).stdout


def test_the_pull_request_holds_the_overlay_and_nothing_else(runner: Runner) -> None:
    variables = prepared_release(runner, ARTIFACT)
    remote = runner.folder / "remote.git"
    git(runner.folder, "init", "--quiet", "--bare", str(remote))
    git(runner.checkout, "init", "--quiet")
    git(runner.checkout, "add", ".")
    git(runner.checkout, "commit", "--quiet", "--message", "before")
    git(runner.checkout, "remote", "add", "origin", str(remote))
    step = step_named("release", "Open the pull request")
    assert runner.run(step, **variables).returncode == 0
    assert runner.calls() == []

    (runner.checkout / "stray").touch()
    assert runner.run(step_named("release", "Change the overlay"), **variables).returncode == 0
    done = runner.run(step, HOME=str(runner.folder), **variables)
    assert done.returncode == 0, done.stderr
    assert [call[1:3] for call in runner.calls()] == [["auth", "setup-git"], ["pr", "create"]]
    changed = git(remote, "show", "--name-only", "--format=", f"model/{ARTIFACT[:19]}").split()
    assert changed == [ADMISSION, *(f"{OVERLAY}/{n}.yaml" for n in
                                    ("config", "rayservice", "settings"))]  # fmt: skip


def test_the_image_is_run_before_it_is_pushed(runner: Runner) -> None:
    (job,) = IMAGE_WORKFLOW["jobs"].values()
    assert set(IMAGE_WORKFLOW[True]) == {"workflow_call"}
    steps = {step["name"]: step for step in job["steps"] if "run" in step}
    assert list(steps) == ["Build", "Run once", "Log in", "Push", "Log out"]
    assert steps["Log out"]["if"] == "always()"
    docker = runner.folder / "bin" / "docker"
    docker.write_text(FAKE_PROGRAM, encoding="utf-8")
    docker.chmod(0o755)
    # What --metadata-file gets.
    pushed = '{"containerimage.digest": "sha256:1"}'
    (runner.temp / "pushed.json").write_text(pushed, encoding="utf-8")
    image = {"IMAGE": "ghcr.io/acme/narrowgate", "TARGET": "serve", "GITHUB_SHA": "c" * 40,
             "USER_NAME": "a", "PASSWORD": "-- a password --"}  # fmt: skip
    for step in steps.values():
        done = runner.run(step, **image)
        assert done.returncode == 0, done.stderr
    calls = runner.calls()
    assert (runner.folder / "output").read_text(encoding="utf-8") == "digest=sha256:1\n"
    assert "-- a password --" not in json.dumps(calls)
    (login,) = [call for call in calls if call[1] == "login"]
    assert login[2] == "ghcr.io"
    stages = re.findall(r"^FROM .* AS (\S+)", (ROOT / "Dockerfile.gpu").read_text(), re.MULTILINE)
    built = [call for call in calls if call[1:3] == ["buildx", "build"]]
    assert ["--load" in call for call in built] == [True, False]
    assert all(call[call.index("--target") + 1] in stages for call in built)


# Steps of the workflow whose commands ci/gate.sh repeats.
SHARED_STEPS = (
    "Check the suites", "Fetch the 16-bit model", "Quantize", "Gate and sign", "Verify",
    "Render the overlay",
)  # fmt: skip


@pytest.mark.parametrize("own_files", [False, True])
def test_the_script_for_other_ci_calls_what_the_workflow_calls(
    runner: Runner, own_files: bool
) -> None:
    if own_files:
        add_own_files(runner.checkout)
    attested(runner.temp / "model")
    prepared_release(runner, ARTIFACT)
    said = {"SAYS": "/hub/snapshot", "OVERLAY": OVERLAY, "ARTIFACT": ARTIFACT}
    for name in SHARED_STEPS:
        assert runner.run(step_named("gate", name), **said).returncode == 0
    wanted = runner.calls()

    temp = str(runner.temp)
    done = subprocess.run(
        [str(ROOT / "ci" / "gate.sh")],
        env={
            **runner.environment, **SETTINGS, **said, "WORK": temp, "ADMISSION": ADMISSION,
            "KEY": f"{temp}/narrowgate.key", "PUBLIC_KEY": f"{temp}/narrowgate.pub",
        },
        cwd=runner.checkout, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == ARTIFACT
    # The workflow renders beside the checkout, for another machine to check.
    found = json.dumps(runner.calls()).replace(f'"{OVERLAY}"]', f'"{temp}/overlay"]')
    assert json.loads(found) == wanted
    admitted = yaml.safe_load((runner.checkout / ADMISSION).read_text(encoding="utf-8"))
    assert list(admitted["data"]) == [ARTIFACT]


@pytest.mark.parametrize("status", [1, 2, 3])
def test_the_script_ends_with_the_status_of_what_failed(runner: Runner, status: int) -> None:
    done = subprocess.run(
        [str(ROOT / "ci" / "gate.sh")],
        env={
            **runner.environment, **SETTINGS, "STATUS": str(status), "KEY": "k", "PUBLIC_KEY": "p",
        },
        cwd=runner.checkout, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == status
    assert not any(call[1] == "verify" for call in runner.calls())


@pytest.mark.parametrize("call", documented(), ids=" ".join)
def test_documented_commands_are_understood(call: list[str]) -> None:
    parsed(call)


def test_the_document_names_what_the_workflow_reads() -> None:
    for name in re.findall(r"(?:vars|secrets)\.(\w+)", TEXT + WORKFLOWS["image"]):
        assert f"`{name}`" in DOCUMENT


ARTIFACT = "sha256-" + "1" * 64
OLD = "sha256-" + "0" * 64


def attested(folder: Path, verdict: str = "pass") -> Path:
    """Write a model with one file and its attestation; return the public key's file."""
    folder.mkdir()
    weights = b"weights" * 1000
    (folder / "model.safetensors").write_bytes(weights)
    files = {"model.safetensors": hashlib.sha256(weights).hexdigest()}
    predicate = {"artifact": {"files": files}, "tasks": {"sentiment": {"verdict": verdict}}}
    subject = [{"digest": {"sha256": ARTIFACT.removeprefix("sha256-")}}]
    payload = json.dumps({"subject": subject, "predicate": predicate}).encode()
    private = Ed25519PrivateKey.generate()
    envelope = Envelope(payload, "application/vnd.in-toto+json", {})
    envelope.sign(CryptoSigner(private))
    (folder / "attestation.json").write_text(json.dumps(envelope.to_dict()), encoding="utf-8")
    key = folder.with_suffix(".pub")
    key.write_bytes(
        private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return key


def test_the_example_verifies_with_stock_libraries(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    program = tmp_path / "check.py"
    program.write_text(example, encoding="utf-8")
    model = tmp_path / "model"
    key = attested(model)

    def check(trusted: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(program), str(model), str(trusted)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    assert check(key).stdout == "sentiment pass\n"

    assert "VerificationError" in check(attested(tmp_path / "other")).stderr

    (model / "model.safetensors").write_bytes(b"changed")
    assert "model.safetensors is not the file that was gated" in check(key).stderr

    file = model / "attestation.json"
    envelope = json.loads(file.read_text(encoding="utf-8"))
    forged = base64.b64decode(envelope["payload"]).replace(b"pass", b"fail")
    envelope["payload"] = base64.b64encode(forged).decode()
    file.write_text(json.dumps(envelope), encoding="utf-8")
    assert "VerificationError" in check(key).stderr
