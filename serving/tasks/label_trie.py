"""Label probabilities from one forward pass, also for labels that share tokens.

The labels' token sequences form a trie. A scoring point is a node with more than one child; where
all labels begin with different tokens, it is only the root. All points of an input are scored at
once. A label's probability is the product, over the points on its path, of the softmax over the
point's candidates. This is the distribution of decoding constrained to the labels, computed without
decoding. Where one label's tokens are the beginning of another's, the end-of-turn token is the
candidate that separates them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from serving.contracts.engine import ScoringPoint
from serving.contracts.errors import InvalidTaskSpec


@dataclass(frozen=True, slots=True)
class LabelTrie:
    """points: where to score. paths: each label's (point, candidate) indices, from the root."""

    points: tuple[ScoringPoint, ...]
    paths: tuple[tuple[tuple[int, int], ...], ...]

    @classmethod
    def build(cls, sequences: Sequence[Sequence[int]], end_of_turn_id: int) -> Self:
        """Build from the labels' token ids.

        Raises InvalidTaskSpec where two labels have the same tokens or a label has none.
        """
        labels = [tuple(sequence) for sequence in sequences]
        if any(not label for label in labels) or len(set(labels)) != len(labels):
            raise InvalidTaskSpec(
                "the model's tokenizer gives two labels the same tokens, or a label none",
                field="labels",
                fix="give the labels verbalizers that differ",
            )
        ended = [(*label, end_of_turn_id) for label in labels]
        children: dict[tuple[int, ...], list[int]] = {}
        for label in ended:
            for depth, token in enumerate(label):
                following = children.setdefault(label[:depth], [])
                if token not in following:
                    following.append(token)
        branching = [prefix for prefix, following in children.items() if len(following) > 1]
        index = {prefix: number for number, prefix in enumerate(branching)}
        points = tuple(ScoringPoint(prefix, tuple(children[prefix])) for prefix in branching)
        paths = tuple(
            tuple(
                (index[label[:depth]], children[label[:depth]].index(token))
                for depth, token in enumerate(label)
                if label[:depth] in index
            )
            for label in ended
        )
        return cls(points, paths)

    def probabilities(self, logprobs: Sequence[Sequence[float]]) -> list[float]:
        """Return a probability for each label, in the labels' order. They sum to 1.

        logprobs: for each point, each candidate's log-probability, natural log, unnormalised.
        """
        steps = [_log_softmax(values) for values in logprobs]
        return [
            math.exp(sum(steps[point][candidate] for point, candidate in path))
            for path in self.paths
        ]


def _log_softmax(values: Sequence[float]) -> list[float]:
    top = max(values)
    total = math.log(sum(math.exp(value - top) for value in values)) + top
    return [value - total for value in values]
