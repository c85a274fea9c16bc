"""The files of a gate run, beside the model they speak of."""

import os
import tempfile
from pathlib import Path
from typing import Any

from evals.findings import Findings
from evals.report.html import render_html
from evals.report.markdown import render_markdown
from evals.signing import make_statement, sign
from serving.contracts.attestation import FILE, envelope_digest


def write_results(findings: Findings, signer: Any, out: Path, *, texts: bool) -> str:
    """Write report.html, report.md and, last, attestation.json; return the envelope's digest.

    Each replaces what an earlier run wrote, whole or not at all. texts: whether the report shows
    texts of examples.
    """
    envelope = sign(make_statement(findings.subject, findings.digest, findings.predicate), signer)
    out.mkdir(parents=True, exist_ok=True)
    _replace(out / "report.html", render_html(findings, texts=texts).encode())
    _replace(out / "report.md", render_markdown(findings).encode())
    _replace(out / FILE, envelope)
    return envelope_digest(envelope)


def _replace(path: Path, content: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
