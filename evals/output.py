"""The files of a gate run, beside the model they speak of."""

from pathlib import Path
from typing import Any

from evals.findings import Findings
from evals.report.html import render_html
from evals.report.markdown import render_markdown
from evals.signing import make_statement, sign
from serving.contracts.attestation import FILE, envelope_digest
from serving.host.safe_write import replace_file

# For whoever serves the model, who need not be whoever gated it.
_MODE = 0o644


def write_results(findings: Findings, signer: Any, out: Path, *, texts: bool) -> str:
    """Write report.html, report.md and, last, attestation.json; return the envelope's digest.

    Each replaces what an earlier run wrote, whole or not at all. texts: whether the report shows
    texts of examples.
    """
    envelope = sign(make_statement(findings.subject, findings.digest, findings.predicate), signer)
    out.mkdir(parents=True, exist_ok=True)
    replace_file(out / "report.html", render_html(findings, texts=texts).encode(), mode=_MODE)
    replace_file(out / "report.md", render_markdown(findings).encode(), mode=_MODE)
    replace_file(out / FILE, envelope, mode=_MODE)
    return envelope_digest(envelope)
