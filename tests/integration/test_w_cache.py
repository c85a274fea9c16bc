"""The cache on two real gateways and PostgreSQL: two tenants ask, repeat, paraphrase, contradict.

The clients are OpenAI's SDK. `pytest -s` prints each answer's headers, and the report at the end.

The gateways are processes of their own without a local model; the provider is the fake one, over
HTTP. The claim on hits by meaning is earned by the traffic of the test.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
import yaml
from pydantic import SecretStr

from serving.contracts.ledger import Tenant
from serving.ledger.access.keys import create_key
from serving.ledger.access.tenants import create_tenant
from serving.ledger.database import Database, database_url
from serving.ledger.migrate import migrate

from ..provider.script import Reply, Seen
from ..provider.server import ProviderServer
from ..unit.database import postgres_server

pytestmark = [pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
KEY = "sk-test-0123456789-never-logged"
MODEL = "openai/gpt-6-luna"
SOON_S = 2.0
START_S = 300.0
NOUNS = (
    "an egg", "rice", "pasta", "a potato", "lentils", "beans", "a lobster", "corn", "carrots",
    "broccoli", "spinach", "a steak", "a turkey", "a duck", "salmon", "a trout", "mussels",
    "shrimp", "tofu", "quinoa", "couscous", "polenta", "oats", "barley", "a pumpkin",
    "a squash", "mushrooms", "asparagus", "artichokes", "cabbage", "cauliflower", "leeks",
    "onions", "peppers", "eggplant", "zucchini", "beets", "turnips", "parsnips", "chickpeas",
    "peas", "bacon", "ham", "lamb", "pork", "veal", "venison", "rabbit", "tuna", "cod",
    "halibut", "squid", "octopus", "crab", "clams", "oysters", "scallops", "noodles",
    "dumplings", "gnocchi", "ravioli", "chestnuts", "plantains", "cassava", "okra", "kale",
    "chard", "fennel", "celery", "tempeh", "seitan", "millet", "bulgur", "farro", "risotto",
    "porridge", "pancakes", "waffles", "an omelette", "custard", "caramel", "jam", "marmalade",
    "chutney", "stock", "gravy", "meatballs", "sausages", "a burger", "a pie", "a quiche",
    "a lasagna", "a paella", "a curry", "a stew", "a chowder", "a goulash", "a casserole",
    "sweet potatoes", "green beans", "brussels sprouts", "black rice", "wild rice",
    "red lentils", "white beans", "a goose", "a pheasant", "quail", "mackerel", "sardines",
    "anchovies", "eel", "a swordfish", "a crayfish", "langoustines", "rhubarb", "quinces",
    "pears", "apples", "plums",
)  # fmt: skip


def answer(seen: Seen) -> Reply:
    """Answer what is asked; as the judge, find answers equal where they are about one noun."""
    if seen.body.get("response_format"):
        text = seen.body["messages"][-1]["content"]
        first, second = (text.partition(f" {name}\n")[2].partition("\n")[0]
                         for name in ("FIRST", "SECOND"))  # fmt: skip
        same = _topic(first) == _topic(second)
        return Reply(json.dumps({"verdict": "equal" if same else "first_is_wrong"}))
    question = seen.body["messages"][-1]["content"]
    style = "In short" if "can I" in question else "Well"
    return Reply(f"{style}: so is cooked {_topic(question)}. Asked was {question}")


def _topic(text: str) -> str:
    found = [noun for noun in NOUNS if f" {noun}" in text]
    return max(found, key=len, default=text)


@dataclass
class Replica:
    """One gateway process."""

    folder: Path
    config: Path
    url: str = ""
    process: "subprocess.Popen[bytes] | None" = None
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.log = self.folder / f"{self.config.stem}.log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.integration.gateway_process", "--auth", "keys",
                 "--config", str(self.config), "--port", str(self.port)],
                cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
                env={**os.environ, "OPENAI_API_KEY": KEY},
            )  # fmt: skip

    def wait(self) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            assert self.process is not None
            if self.process.poll() is not None:
                break
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200:
                    return
            time.sleep(0.3)
        pytest.fail(f"not ready:\n{self.log.read_text()[-4000:]}")

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(timeout=30)

    def stop(self) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        below = psutil.Process(self.process.pid).children(recursive=True)
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=30)
        if self.process.poll() is None:
            self.process.kill()
        for one in below:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


@dataclass(frozen=True)
class Answered:
    """What a client got. usage: of OpenAI's SDK."""

    headers: dict[str, str]
    text: str
    usage: Any

    @property
    def state(self) -> str:
        return self.headers["x-narrowgate-cache"]

    @property
    def kind(self) -> str | None:
        return self.headers.get("x-narrowgate-cache-kind")

    def show(self, tenant: str, replica: str, text: str, *, stream: bool) -> None:
        """Print one line."""
        names = ("cache", "cache-kind", "cache-similarity", "route", "cost-usd", "guarantee")
        said = [self.headers.get(f"x-narrowgate-{name}", "-") for name in names]
        how = "streamed" if stream else "whole"
        print(f"{tenant:<7}{replica:<6}{how:<9}{text!r:<34} {'  '.join(said)}")


@dataclass(frozen=True)
class Gateways:
    """Two replicas over one database. keys: by tenant; the operator's under `admin`."""

    one: Replica
    other: Replica
    keys: dict[str, str]
    url: SecretStr
    state: Path

    def ask(
        self, replica: Replica, tenant: str, text: str, *, stream: bool = False, **headers: str
    ) -> "Answered":
        """Ask with OpenAI's SDK; print what came of it."""
        client = openai.OpenAI(
            api_key=self.keys[tenant], base_url=f"{replica.url}/v1", max_retries=0, timeout=60
        )
        more: dict[str, Any] = {"stream_options": {"include_usage": True}} if stream else {}
        with client:
            raw = client.chat.completions.with_raw_response.create(
                model=MODEL, messages=[{"role": "user", "content": text}], stream=stream,
                extra_headers={name.replace("_", "-"): value for name, value in headers.items()},
                **more,
            )  # fmt: skip
            found: Any = raw.parse()
            if stream:
                chunks = list(found)
                words = [c.choices[0].delta.content or "" for c in chunks if c.choices]
                answered = Answered(dict(raw.headers), "".join(words), chunks[-1].usage)
            else:
                said = found.choices[0].message.content or ""
                answered = Answered(dict(raw.headers), said, found.usage)
        assert answered.usage.completion_tokens > 0
        answered.show(tenant, replica.config.stem, text, stream=stream)
        return answered

    def run(self, *words: str) -> str:
        """Run a command of narrowgate on the ledger's database; return what it prints."""
        done = subprocess.run(
            [sys.executable, "-m", "serving.cli", *words, "--state", str(self.state)],
            env={**os.environ, "NARROWGATE_LEDGER__URL": self.url.get_secret_value(),
                 "COLUMNS": "100"},
            cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        print(f"$ narrowgate {' '.join(words)}\n{done.stdout}" if "--json" not in words else "")
        return done.stdout

    def claims(self) -> list[dict[str, Any]]:
        found = httpx.get(
            f"{self.one.url}/v1/admin/claims", timeout=30,
            headers={"authorization": f"Bearer {self.keys['admin']}"},
        )  # fmt: skip
        assert found.status_code == 200, found.text
        claims: list[dict[str, Any]] = found.json()["data"]
        return claims


@pytest.fixture(scope="module")
def gateways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateways]:
    folder = tmp_path_factory.mktemp("cache")
    with ProviderServer(keys=[KEY]) as provider, postgres_server() as url:
        provider.script.answer = answer
        replicas = []
        for name in ("one", "other"):
            config = folder / f"{name}.yaml"
            config.write_text(yaml.safe_dump({
                "models": [], "state": str(folder / name), "ledger": {"url": url},
                "frontier": {"providers": {
                    "openai": {"api": "openai", "base_url": f"{provider.url}/v1"},
                    "anthropic": {"api": "anthropic", "base_url": provider.url},
                }},
                # One client asks everything within a minute: as many would within hours.
                "evidence": {"reference": MODEL, "group_window_s": 0.0, "min_span_h": 0.0,
                             "min_groups": 10, "max_usd_a_day": 1000},
            }))  # fmt: skip
            replicas.append(Replica(folder, config))
        database = Database(database_url(SecretStr(url), folder))
        migrate(database)
        keys = {"admin": create_key(database, None).text.get_secret_value()}
        for tenant in ("acme", "globex"):
            create_tenant(database, Tenant(tenant))
            keys[tenant] = create_key(database, tenant).text.get_secret_value()
        database.close()
        try:
            for replica in replicas:
                replica.start()
            for replica in replicas:
                replica.wait()
            yield Gateways(*replicas, keys, SecretStr(url), folder / "one")
        finally:
            for replica in replicas:
                replica.stop()


def becomes(
    found: Gateways, replica: Replica, state: str, text: str, *, stream: bool = False
) -> Answered:
    """Look up until the cache does so; fail after SOON_S."""
    until_s = time.monotonic() + SOON_S
    while True:
        answered = found.ask(replica, "acme", text, stream=stream, x_narrowgate_cache="no-store")
        if answered.state == state:
            return answered
        assert time.monotonic() < until_s, state
        time.sleep(0.02)


def test_the_claim_is_earned_in_shadow(gateways: Gateways) -> None:
    began_s = time.monotonic()
    # All that may be found first: an entry is stored behind its answer, not before it.
    for noun in NOUNS:
        gateways.ask(gateways.one, "acme", f"How do I cook {noun}?")
    sent = len(NOUNS)
    for noun in NOUNS:
        gateways.ask(gateways.one, "acme", f"How can I cook {noun}?")
        sent += 1
        if any(claim["state"] == "held" for claim in gateways.claims()):
            break
    (claim,) = gateways.claims()
    assert claim["state"] == "held", claim
    assert claim["shortcut"] == "cached_answer"
    print(f"earned after {sent} chats, {time.monotonic() - began_s:.1f} s")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_paraphrase_hits_on_both_gateways(gateways: Gateways, stream: bool) -> None:
    # The other replica reads the claims every second.
    for replica in (gateways.one, gateways.other):
        hit = becomes(gateways, replica, "hit", "How could I cook an egg?", stream=stream)
        assert hit.kind in ("semantic", "alias")
        assert hit.headers["x-narrowgate-route"] == "cache"
        assert hit.headers["x-narrowgate-guarantee"].startswith("traffic; target_error=0.05")
        assert float(hit.headers["x-narrowgate-cost-usd"]) == 0
        assert "cooked an egg" in hit.text


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_repeats_contradictions_and_another_tenant(gateways: Gateways, stream: bool) -> None:
    repeated = gateways.ask(gateways.other, "acme", "How do I cook an egg?", stream=stream)
    assert (repeated.state, repeated.kind) == ("hit", "exact")
    for text in ("How do I not cook an egg?", "How do I cook 3 eggs?", "Why do I cook an egg?"):
        other = gateways.ask(
            gateways.one, "acme", text, stream=stream, x_narrowgate_cache="no-store"
        )
        assert other.state == "miss", text
    for text in ("How do I cook an egg?", "How could I cook an egg?"):
        stranger = gateways.ask(
            gateways.one, "globex", text, stream=stream, x_narrowgate_cache="no-store"
        )
        assert stranger.state == "miss"
        assert stranger.headers["x-narrowgate-route"] == "frontier"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_an_undo_holds_on_both_at_once(gateways: Gateways, stream: bool) -> None:
    text = "How could I cook pork?" if stream else "How could I cook rice?"
    hit = becomes(gateways, gateways.other, "hit", text, stream=stream)
    entry = hit.headers["x-narrowgate-cache-entry"]
    authorization = {"authorization": f"Bearer {gateways.keys['acme']}"}
    stranger = {"authorization": f"Bearer {gateways.keys['globex']}"}
    path = f"{gateways.one.url}/v1/cache/entries/{entry}"
    assert httpx.delete(path, headers=stranger, timeout=30).status_code == 404
    assert httpx.delete(path, headers=authorization, timeout=30).json()["deleted"] == 1
    for replica in (gateways.one, gateways.other):
        again = gateways.ask(replica, "acme", text, stream=stream, x_narrowgate_cache="no-store")
        assert again.headers.get("x-narrowgate-cache-entry") != entry


def test_the_command_line_undoes_as_well(gateways: Gateways) -> None:
    # An entry of each tenant; `clear` takes one tenant's and leaves the other's.
    text = "How do I cook an egg?"
    gateways.ask(gateways.one, "globex", text)
    entry = gateways.ask(gateways.other, "acme", text).headers["x-narrowgate-cache-entry"]
    assert "1 entries deleted" in gateways.run("cache", "delete", "--entry", entry)
    for replica in (gateways.one, gateways.other):
        again = gateways.ask(replica, "acme", text, x_narrowgate_cache="no-store")
        assert again.headers.get("x-narrowgate-cache-entry") != entry
        assert again.kind != "exact"
    gateways.run("cache", "stats")
    gateways.run("cache", "clear", "--namespace", "tenant/globex")
    for replica in (gateways.one, gateways.other):
        assert gateways.ask(replica, "globex", text, x_narrowgate_cache="no-store").state == "miss"
    assert becomes(gateways, gateways.one, "hit", "How could I cook bacon?").kind != "exact"


def test_a_killed_gateway_finds_its_questions_again(gateways: Gateways) -> None:
    gateways.one.kill()
    gateways.one.start()
    gateways.one.wait()
    hit = becomes(gateways, gateways.one, "hit", "How could I cook pasta?")
    assert hit.kind in ("semantic", "alias")


def test_the_report_shows_hits_their_bound_and_the_saving(gateways: Gateways) -> None:
    text = gateways.run("report")
    for words in ("cache hit", "hits by meaning", "saved", "net of"):
        assert words in text, words
    report = json.loads(gateways.run("report", "--json"))
    kinds = {line["name"]: line for line in report["cache"]}
    assert kinds["exact"]["hits"] >= 1
    assert kinds["semantic"]["hits"] >= 3
    (claim,) = report["cache_claims"]
    assert (claim["tenants"], claim["state"], claim["target_error"]) == ("acme", "held", 0.05)
    assert claim["observed_error"] <= claim["upper_bound"] < 1
    totals, savings = report["totals"], report["savings"]
    assert totals["audits"] > 0
    # What audits and judges cost is paid, and the saving is what the rest leaves.
    assert float(totals["audits_usd"]) > 0
    saved = float(savings["reference_usd"]) - float(savings["paid_usd"])
    assert float(savings["saved_usd"]) == pytest.approx(saved)
    assert float(savings["paid_usd"]) >= float(totals["audits_usd"])
    assert report["reconciliation"]["discrepancies"] == []
