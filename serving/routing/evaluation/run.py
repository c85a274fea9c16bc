"""Measures the router on the shipped held-out texts and on development samples."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from serving.contracts.requests import ChatRequest, Message
from serving.contracts.routing import Tier
from serving.contracts.routing_settings import RoutingSettings
from serving.contracts.task_spec import TaskSpec
from serving.embedding.embedder import Embedder
from serving.routing.conversation import Prompt, read
from serving.routing.corpus import UNKNOWN, Corpus, LabelledPrompt
from serving.routing.evaluation.cost import CostReport, cost_report, tiers_by_category
from serving.routing.evaluation.detection import DetectionReport, detection_report, outcome
from serving.routing.evaluation.held_out import Half, held_out_samples
from serving.routing.evaluation.samples import RoutingSample, Sample, Samples
from serving.routing.features import feature_rows
from serving.routing.heads import RouterModel
from serving.routing.narrow import Detection, NarrowDetector
from serving.routing.router import tier_by_rule, tier_of_score


@dataclass(frozen=True, slots=True)
class RouterReport:
    """held_out: on shipped texts outside the training part. samples: on development samples.

    costs: accuracy against cost, by data set. categories: the tiers of open questions, by category.
    trusted: the model's complexity scores decide. phrasings: on the parts of the held-out
    phrasings.
    """

    held_out: DetectionReport
    samples: DetectionReport | None
    costs: Mapping[str, CostReport]
    categories: Mapping[str, Mapping[Tier, int]]
    trusted: bool
    phrasings: Mapping[str, DetectionReport]

    @property
    def scores_earn_trust(self) -> bool:
        """Return whether complexity is better than random in every data set."""
        return earns_trust(self.costs)


def earns_trust(costs: Mapping[str, CostReport]) -> bool:
    """Return whether there is a data set and scores beat random in every one."""
    return bool(costs) and all(report.beats_random for report in costs.values())


@dataclass(frozen=True, slots=True)
class Subject:
    """A router model with what it needs to decide."""

    model: RouterModel
    specs: Mapping[str, TaskSpec]
    embedder: Embedder
    settings: RoutingSettings

    def evaluate(
        self, corpus: Corpus, samples: Samples | None, phrasings: Sequence[Half] = ()
    ) -> RouterReport:
        """Return all figures. Blocking, about 5 ms a prompt. phrasings: parts to measure on."""
        known = [row for row in corpus.part(held_out=True) if row.task != UNKNOWN]
        return RouterReport(
            self.detections(known),
            self.detections(samples.tasks) if samples and samples.tasks else None,
            self.costs(samples.routing) if samples else {},
            self._categories(samples) if samples else {},
            self.model.complexity.trusted,
            {half: self.detections(held_out_samples(half)) for half in phrasings},
        )

    def costs(self, rows: Sequence[RoutingSample]) -> dict[str, CostReport]:
        """Return accuracy against cost for each data set."""
        reports = {}
        for source in sorted({row.source for row in rows}):
            own = [row for row in rows if row.source == source]
            reports[source] = cost_report(
                np.array(self._scores([row.text for row in own])),
                np.array([row.cheap_right for row in own]),
                np.array([row.expensive_right for row in own]),
            )
        return reports

    def detections(self, rows: Sequence[LabelledPrompt | Sample]) -> DetectionReport:
        """Return the accuracy of task detection on some prompts. Blocking."""
        return detection_report(asyncio.run(self._outcomes(rows)))

    async def _outcomes(self, rows: Sequence[LabelledPrompt | Sample]) -> list[Any]:
        detector = NarrowDetector(
            self.model, self.specs, self.embedder, self.settings.narrow_certainty
        )
        found = []
        for row in rows:
            reading = read(_chat(row.prompt), self.settings.narrow_max_chars)
            detection = (
                detector.detect(reading.prompt, await detector.vectors(reading.prompt))
                if reading.obstacle is None
                else Detection(None, 1.0, reading.obstacle)
            )
            found.append(outcome(row, detection))
        return found

    def _scores(self, texts: Sequence[str]) -> list[float]:
        vectors = self.embedder.embed_all(texts)
        head = self.model.complexity
        rows = zip(vectors, feature_rows(texts), strict=True)
        return [head.score(vector, features) for vector, features in rows]

    def _categories(self, samples: Samples) -> Mapping[str, Mapping[Tier, int]]:
        texts = [chat.text for chat in samples.chats]
        if self.model.complexity.trusted:
            scores = self._scores(texts)
            tiers = [tier_of_score(score, self.settings.complexity) for score in scores]
        else:
            tiers = [tier_by_rule(read(_chat(Prompt("", text)), 1)) for text in texts]
        return tiers_by_category(tiers, [chat.category for chat in samples.chats])


def _chat(prompt: Prompt) -> ChatRequest:
    system = (Message("system", prompt.system),) if prompt.system else ()
    return ChatRequest("auto", (*system, Message("user", prompt.user)))
