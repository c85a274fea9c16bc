"""Writes the files of a gate run: two reports and the attestation."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evals.findings import Findings
from evals.report.html import render_html
from evals.report.markdown import render_markdown
from evals.signing import make_statement, sign
from serving.contracts.attestation import FILE, envelope_digest
from serving.contracts.errors import EvaluationFailed, OutputInUse
from serving.host.safe_write import refuse_unwritable_output, replace_file

# Readable by other users: the gate and the server may run as different users.
_MODE = 0o644
_REPORTS = ("report.html", "report.md")


def refuse_unwritable_results(out: Path) -> None:
    """Refuse a folder in which the results cannot be written. Raises OutputInUse."""
    refuse_unwritable_output(out)
    for name in (*_REPORTS, FILE):
        if (out / name).is_dir():
            raise OutputInUse(
                f"{str(out / name)!r} is a folder, and the gate writes a file of this name",
                field="out",
                fix="name another folder",
            )


def write_baseline(findings: Findings, signer: Any, out: Path, name: str) -> str:
    """Write the 16-bit model's attestation.json; return the envelope's digest.

    name: of the model, informative. Raises EvaluationFailed where the file cannot be written.
    """
    predicate = findings.baseline
    assert predicate is not None
    envelope = sign(make_statement(name, predicate.baseline, predicate), signer)
    _write(out, {FILE: envelope})
    return envelope_digest(envelope)


def write_results(findings: Findings, signer: Any, out: Path, *, texts: bool) -> str:
    """Write report.html, report.md and, last, attestation.json; return the envelope's digest.

    Replaces each file of an earlier run atomically. texts: whether the report shows texts of
    examples. Raises EvaluationFailed where a file cannot be written.
    """
    envelope = sign(make_statement(findings.subject, findings.digest, findings.predicate), signer)
    reports = (render_html(findings, texts=texts).encode(), render_markdown(findings).encode())
    _write(out, dict(zip((*_REPORTS, FILE), (*reports, envelope), strict=True)))
    return envelope_digest(envelope)


def _write(out: Path, files: Mapping[str, bytes]) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            replace_file(out / name, content, mode=_MODE)
    except OSError as error:
        raise EvaluationFailed(
            f"the results cannot be written to {str(out)!r}: {error.strerror}",
            field="out",
            fix="free disk space or make the folder writable, then run the gate again",
        ) from error
