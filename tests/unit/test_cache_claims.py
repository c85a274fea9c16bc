"""Cached answers of claims: hidden as soon as what they were made under is not in force."""

from dataclasses import replace
from typing import Any

import pytest

from serving.contracts.errors import TaskNotAttested
from serving.contracts.evidence import ClaimEvent, ClaimState
from serving.contracts.task_spec import TaskSpec
from serving.ledger.database import Database
from serving.tasks.grant import Grant

from .attested import result
from .cache_kit import cached, state_of
from .evidence_kit import AT, EARLY, EvidenceServer
from .test_evidence_states import LABEL, bring, says


@pytest.fixture
def found(specs: dict[str, TaskSpec], database: Database) -> EvidenceServer:
    grants = {"topic": Grant(result(specs["topic"]), "sha256:abc", None)}
    return EvidenceServer(specs, database, grants, reply=says())


async def ask(found: EvidenceServer, text: str = "x") -> tuple[str, str, str]:
    """Return what the cache did, and the route and claim of the answer."""
    response = await found.ask(text)
    await found.server.context.cache.read(lambda store: None)  # type: ignore[union-attr]
    answer = response.json()
    return state_of(response), answer["route"], str(answer["guarantee"]["claim"])


async def test_an_answer_of_a_held_claim_hits_until_the_claim_is_suspended(
    found: EvidenceServer, database: Database
) -> None:
    name = await bring(found, ClaimState.HELD)
    async with cached(found.server, database, found.evidence):
        assert await ask(found) == ("miss", "local", name)
        assert await ask(found) == ("hit", "cache", name)
        # The coin may have had the hit audited, in a row of its own.
        exits = [page.exit for page in found.server.ledger.pages]
        (hit,) = [one for one in exits if one is not None and one.route == "cache"]
        assert (hit.claim, hit.evidence, hit.guaranteed) == (name, "traffic", True)
        event = ClaimEvent(name, "suspended", "by a test", "narrowgate", AT, 0)
        found.store.append(events=[event])
        await found.worker.round()
        # The reference answers, and its answer replaces the other.
        assert await ask(found) == ("miss", "frontier", "None")
        assert await ask(found) == ("hit", "cache", "None")


async def test_a_withdrawn_claim_hides_its_answers(
    found: EvidenceServer, database: Database
) -> None:
    name = await bring(found, ClaimState.HELD)
    async with cached(found.server, database, found.evidence):
        await ask(found)
        found.store.append(events=[ClaimEvent(name, "withdrawn", "by a test", "k", AT, 0)])
        await found.worker.round()
        assert (await ask(found))[:2] == ("miss", "frontier")


async def test_a_claim_that_cannot_be_read_hides_its_answers(
    found: EvidenceServer, database: Database
) -> None:
    await bring(found, ClaimState.HELD)
    async with cached(found.server, database, found.evidence):
        await ask(found)
        found.clock.now_s += 1000
        assert (await ask(found))[:2] == ("miss", "frontier")


async def test_a_suites_answer_is_hidden_where_its_model_lost_its_attestation(
    specs: dict[str, TaskSpec], database: Database
) -> None:
    grants = {"topic": Grant(result(specs["topic"]), "sha256:abc", None)}
    found = EvidenceServer(specs, database, grants)
    await found.ready()
    async with cached(found.server, database, found.evidence):
        assert (await ask(found))[:2] == ("miss", "local")
        assert (await ask(found))[:2] == ("hit", "cache")
        tasks: Any = found.server.context.models.tasks
        refused = replace(tasks["topic"].grant, refusal=TaskNotAttested("too old"))
        tasks["topic"] = replace(tasks["topic"], grant=refused)
        assert (await found.ask("x")).status_code == 409


async def test_a_text_that_the_claim_lists_as_often_wrong_is_asked_again(
    found: EvidenceServer, database: Database
) -> None:
    name = await bring(found, ClaimState.HELD)
    async with cached(found.server, database, found.evidence):
        await ask(found)
        assert (await ask(found))[0] == "hit"
        digest = found.evidence.text_digest(name, "x")
        claim = replace(found.claim, escalate=(digest,))
        find = found.snapshot.find
        found.snapshot.find = (  # type: ignore[method-assign]
            lambda wanted: claim if wanted == name else find(wanted)
        )
        assert (await ask(found))[:2] == ("miss", "frontier")


async def test_while_a_claim_is_earned_the_references_answer_hits(
    found: EvidenceServer, database: Database
) -> None:
    await found.ready()
    async with cached(found.server, database, found.evidence):
        first = await found.ask("y")
        assert first.json()["value"] == LABEL
        assert (await ask(found, "y"))[:2] == ("hit", "cache")
    await found.settle()
    # One input of evidence: the hit is none.
    assert len([row for row in found.audits() if row.origin == "shadow"]) == 1


async def test_evidence_and_cached_answers_are_deleted_together(
    found: EvidenceServer, database: Database
) -> None:
    await found.ready()
    async with cached(found.server, database, found.evidence):
        headers = {"x-narrowgate-user": "ann"}
        await found.ask("x", headers=headers)
        await found.ask("y")
        client = found.server.client
        gone = await client.delete("/v1/admin/evidence?tenant=default&end_user=ann")
        assert gone.json()["cached"] == 1
        assert (await ask(found, "x"))[0] == "miss"
        assert (await ask(found, "y"))[0] == "hit"
        gone = await client.delete("/v1/admin/evidence?tenant=default")
        assert gone.json()["cached"] == 2


async def test_hits_under_a_claim_are_watched_as_other_answers_are(
    specs: dict[str, TaskSpec], database: Database
) -> None:
    always = EARLY.model_copy(update={"high_rate": 1.0, "floor_rate": 1.0})
    grants = {"topic": Grant(result(specs["topic"]), "sha256:abc", None)}
    found = EvidenceServer(specs, database, grants, settings=always, reply=says())
    name = await bring(found, ClaimState.HELD)
    async with cached(found.server, database, found.evidence):
        assert await ask(found) == ("miss", "local", name)
        await found.settle()
        before = [row for row in found.audits() if row.origin == "accepted"]
        accepted = found.claim.accepted
        assert await ask(found) == ("hit", "cache", name)
        await found.settle()
        after = [row for row in found.audits() if row.origin == "accepted"]
        assert len(after) == len(before) + 1
        assert found.claim.accepted == accepted + 1
        assert after[-1].verdict == before[-1].verdict
        # One that the claim does not cover any more is no hit, and none is noted.
        found.store.append(events=[ClaimEvent(name, "withdrawn", "by a test", "k", AT, 0)])
        await found.worker.round()
        await ask(found)
        await found.settle()
        assert [row for row in found.audits() if row.origin == "accepted"] == after
