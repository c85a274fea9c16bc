"""Public data sets through the hub's own client, from a hub on a loopback socket."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from .hub import serve_hub

COMMIT = "c0ffee" + "0" * 34


CARD = """---
configs:
- config_name: default
  data_files:
  - split: validation
    path: data/validation-*
---
"""

FETCH = """
import json, sys
from evals.public_sets.fetch import fetch
from serving.contracts.errors import InvalidSuite
from serving.tasks.catalog import load_specs

specs = load_specs(None)
for name, task, commit in [item.split(",") for item in sys.argv[1:]]:
    try:
        found = fetch(name, specs[task], revision=commit, files=[], limit=None, seed=0)
    except InvalidSuite as error:
        found = str(error)
    print(json.dumps(found))
"""


def test_a_set_comes_from_the_hub_at_its_commit(tmp_path: Path) -> None:
    card, folder = tmp_path / "sst2", tmp_path / "wnut_17"
    (card / "data").mkdir(parents=True)
    (folder / "wnut_17" / "test").mkdir(parents=True)
    (card / "README.md").write_text(CARD, encoding="utf-8")
    table = pa.table({"idx": [0, 1], "sentence": ["a dull tale", "a bright tale"], "label": [0, 1]})
    pq.write_table(table, card / "data" / "validation-00000-of-00001.parquet")
    table = pa.table({"tokens": [["The", "Quiet", "Owls", "sang"]], "ner_tags": [[0, 5, 6, 0]]})
    pq.write_table(table, folder / "wnut_17" / "test" / "0000.parquet")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
    asked = [f"sst2,sentiment,{COMMIT}", f"wnut17,ner,{COMMIT}", f"ag_news,topic,{COMMIT}"]
    repos = {"stanfordnlp/sst2": card, "leondz/wnut_17": folder}
    with serve_hub(repos, COMMIT) as endpoint:
        # Another process: huggingface_hub reads the endpoint while it is imported.
        done = subprocess.run(
            [sys.executable, "-c", FETCH, *asked], capture_output=True, text=True, check=False,
            env={**environment, "HF_ENDPOINT": endpoint}, timeout=100,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    sst2, wnut17, absent = map(json.loads, done.stdout.splitlines())
    assert [(row["text"], row["label"]) for row in sst2] == [
        ("a dull tale", "negative"), ("a bright tale", "positive"),
    ]  # fmt: skip
    assert wnut17[0]["entities"] == [{"text": "Quiet Owls", "type": "organization"}]
    assert absent.startswith(f"fancyzhx/ag_news at {COMMIT} cannot be read")
