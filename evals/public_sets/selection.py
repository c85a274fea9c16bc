"""Selects the rows of a suite and draws a sample of them. Pure.

Texts are not changed. The selection leaves out rows that the suite's reader refuses (a text without
a visible character, or one that is too long), repeated texts, texts with two different answers, and
texts of the task's own prompt.
"""

import json
from collections.abc import Sequence

import numpy as np

from evals.public_sets.catalog import FLORES, Row
from evals.suite import parse_line
from evals.suite_check import few_shot_digests
from serving.contracts.errors import InvalidSuite
from serving.contracts.task_spec import TaskSpec
from serving.tasks.fingerprint import text_digest


def distinct(rows: Sequence[Row], spec: TaskSpec) -> list[Row]:
    """Return the rows that a suite can hold, in the source's order."""
    shown = few_shot_digests(spec)
    first: dict[str, Row] = {}
    contradicted: set[str] = set()
    kept = []
    for row in rows:
        texts = {code: row[code] for code in ("text", *FLORES) if code in row}
        digests = {code: text_digest(text) for code, text in texts.items()}
        if not _is_readable(row, spec) or shown & set(digests.values()):
            continue
        keys = [f"{code} {digest}" for code, digest in digests.items()]
        earlier = [first[key] for key in keys if key in first]
        contradicted |= {other["id"] for other in earlier if _answer(other) != _answer(row)}
        if not earlier:
            first |= dict.fromkeys(keys, row)
            kept.append(row)
    return [row for row in kept if row["id"] not in contradicted]


def sample(rows: Sequence[Row], limit: int, seed: int) -> list[Row]:
    """Draw `limit` rows, stratified by label, and return them in the source's order.

    The rows left over by rounding go to the labels with the largest remainders.
    """
    if limit >= len(rows):
        return list(rows)
    strata: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        strata.setdefault(str(row.get("label", "")), []).append(index)
    quotas = {name: limit * len(found) / len(rows) for name, found in strata.items()}
    taken = {name: int(quota) for name, quota in quotas.items()}
    order = sorted(strata, key=lambda name: (taken[name] - quotas[name], name))
    for name in order[: limit - sum(taken.values())]:
        taken[name] += 1
    random = np.random.default_rng(seed)
    chosen: list[int] = []
    for name in sorted(strata):
        chosen += random.choice(strata[name], taken[name], replace=False).tolist()
    return [rows[index] for index in sorted(chosen)]


def _is_readable(row: Row, spec: TaskSpec) -> bool:
    try:
        return bool(parse_line(json.dumps(row), spec, str(row["id"])))
    except InvalidSuite:
        return False


def _answer(row: Row) -> object:
    return row.get("label", row.get("entities"))
