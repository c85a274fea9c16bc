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
JOBS: dict[str, dict[str, Any]] = WORKFLOW["jobs"]
DOCUMENT = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")

STEPS = [(job, step) for job, content in JOBS.items() for step in content["steps"]]
MODEL = "meta-llama/Meta-Llama-3-8B-Instruct"
COMMIT = "8afb486c1db24fe5011ec46dfbe5b5dccdb575c2"
SETTINGS = {
    "MODEL": MODEL, "REVISION": COMMIT, "RECIPE": "int8-w8a8", "BASELINE": "/hub/snapshot",
    "MARGINS": "sentiment=0.02\ntopic=0.02", "CONFIG": "settings.yaml", "HF_TOKEN": "",
    "SIGNING_KEY": "-- a key --", "PUBLIC_KEY": "-- a public key --", "PULL_REQUEST": "7",
    "GH_TOKEN": "token",
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
        "verdict": {},
    }
    assert TEST_WORKFLOW["permissions"] == {}
    (job,) = TEST_WORKFLOW["jobs"].values()
    assert job["permissions"] == {"contents": "read"}


def test_the_model_gate_runs_only_when_another_workflow_calls_it() -> None:
    assert set(WORKFLOW[True]) == {"workflow_call"}
    call = WORKFLOW[True]["workflow_call"]
    assert set(call["inputs"]) == {"model", "revision", "recipe", "margins"}
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


def test_the_test_workflow_runs_make_test_on_every_pull_request() -> None:
    assert TEST_WORKFLOW[True] == {"pull_request": None, "push": {"branches": ["main"]}}
    (job,) = TEST_WORKFLOW["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == ["make test"]
    (python,) = [step for step in job["steps"] if "setup-python" in step.get("uses", "")]
    assert python["with"]["python-version"] == "3.11"
    assert "secrets." not in WORKFLOWS["test"]
    assert job["timeout-minutes"] <= 90


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
    assert hosts.pop("gate") == ["self-hosted", "linux", "x64", "gpu"]
    assert set(hosts.values()) == {"ubuntu-latest"}


def test_secrets_are_the_environments_and_each_goes_to_its_step_alone() -> None:
    assert JOBS["gate"]["environment"] == "model-signing"
    held = {
        (job, step["name"], name)
        for job, step in STEPS
        for name in re.findall(r"secrets\.(\w+)", json.dumps(step))
    }
    assert held == {
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


def test_the_model_is_uploaded_after_success_alone_and_the_report_in_any_case() -> None:
    model = step_named("gate", "Upload the model")
    assert model["if"] == "success()"
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
def test_what_a_pull_request_touches_is_seen(
    runner: Runner, path: str, event: str, touched: str
) -> None:
    def git(*arguments: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
        subprocess.run(["git", *who, *arguments], cwd=runner.checkout, check=True)

    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "--message", "before")
    file = runner.checkout / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("new", encoding="utf-8")
    git("add", ".")
    git("commit", "--quiet", "--message", "after")
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


def test_verify_is_called_as_it_wants(runner: Runner) -> None:
    (call,) = calls_of(runner, "Verify")
    assert (runner.temp / "narrowgate.pub").read_text(encoding="utf-8") == "-- a public key --\n"
    parsed(call)


@pytest.mark.parametrize("call", documented(), ids=" ".join)
def test_documented_commands_are_understood(call: list[str]) -> None:
    parsed(call)


def test_the_document_names_what_the_workflow_reads() -> None:
    for name in re.findall(r"(?:vars|secrets)\.(\w+)", TEXT):
        assert f"`{name}`" in DOCUMENT


def attested(folder: Path) -> Path:
    """Write a model with one file and its attestation; return the public key's file."""
    folder.mkdir()
    weights = b"weights" * 1000
    (folder / "model.safetensors").write_bytes(weights)
    files = {"model.safetensors": hashlib.sha256(weights).hexdigest()}
    predicate = {"artifact": {"files": files}, "tasks": {"sentiment": {"verdict": "pass"}}}
    payload = json.dumps({"predicate": predicate}).encode()
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
