"""Scores each unit of a context by how likely it answers the question: a linear model. Pure."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from serving.contracts.errors import InvalidSettings
from serving.contracts.plain_file import read_plain_text, unread_because
from serving.embedding.token_vectors import TokenVectors

Floats = NDArray[np.float32]
Encode = Callable[[Sequence[str]], Floats]
"""Returns (n, dimensions) rows of unit length; blocking."""

EncoderName = Literal["tokens", "sentences"]
"""tokens: similarities of the encoder's input vectors. sentences: also of its outputs."""

_K1, _B = 1.2, 0.5
_STEM_CHARS = 5
_MOST_QUESTION_TOKENS = 64
_UNRELATED = 0.25
_UNKNOWN = 100
_NUMBER = re.compile(r"\d")
_CAPITALS = re.compile(r"(?<=[a-z,;] )[A-Z]\w+")
_ASKS_NUMBER = re.compile(
    r"\b(?:how (?:many|much|long|often|far|large|big|high|deep|old|tall|wide|fast|soon|heavy)|when|"
    r"what (?:year|date|price|time|number|percentage|share|temperature|distance|length|weight)|"
    r"wie ?(?:viele?|lange|oft|weit|gro\u00df|hoch|tief|alt)|wann|combien|quand|cu\u00e1nt[oa]s?|"
    r"cu\u00e1ndo)\b",
    re.IGNORECASE,
)
_ASKS_NAME = re.compile(
    r"\b(?:who|whom|whose|where|which (?:city|country|person)|wer|wen|wem|wo|qui|o\u00f9|"
    r"qui\u00e9n|d\u00f3nde)\b",
    re.IGNORECASE,
)

_MOST_PARTS = 4
_PART = re.compile(
    r"\b(?:and|und|et|y)\s+(?=(?:(?:at|by|for|from|in|of|on|to|with|an|auf|f\u00fcr|mit|von|zu|\u00e0|de|avec|"
    r"en|con)\s)?(?:how|who|whom|whose|what|when|where|which|why|wie|wer|wen|wem|was|wann|wo|warum|"
    r"welche[mnrs]?|qui|quand|o\u00f9|combien|quel(?:le)?s?|pourquoi|comment|qui\u00e9n(?:es)?|cu\u00e1ndo|"
    r"d\u00f3nde|cu\u00e1nt[ao]s?|qu\u00e9|cu\u00e1l(?:es)?|c\u00f3mo)\b)",
    re.IGNORECASE,
)
"""Where one question ends and another one begins."""
_LEAST_PART_WORDS = 3

_TITLE_CHARS = 200
_REMARK = re.compile(r"\([^()]*\)")
_NO_LETTER = re.compile(r"[\W_]+")

FEATURES = (
    "passage_bm25", "passage_stem_bm25", "passage_cosine", "passage_match", "sentence_bm25",
    "sentence_stem_bm25", "sentence_cosine", "sentence_match", "title_match", "before_match",
    "after_match", "number_asked", "name_asked", "length", "best_passage", "best_sentence",
    "title_letters", "best_title_letters",
)  # fmt: skip
ENCODED_FEATURES = ("passage_similarity", "sentence_similarity", "most_similar_passage")


@dataclass(frozen=True, slots=True)
class Passages:
    """A context's units as the model sees them, in order.

    texts: of the units. passages: each unit's passage, ascending without gaps from 0. titles: of
    the passages.
    """

    texts: Sequence[str]
    passages: NDArray[np.intp]
    titles: Sequence[str]

    @property
    def starts(self) -> NDArray[np.intp]:
        """Return the first unit of each passage."""
        return np.flatnonzero(np.r_[True, self.passages[1:] != self.passages[:-1]])


class Ranker:
    """Computes a context's features. vectors: of tokens. encode: the encoder; None without it."""

    def __init__(self, vectors: TokenVectors, encode: Encode | None = None) -> None:
        self._vectors = vectors
        self._encode = encode

    @property
    def names(self) -> tuple[str, ...]:
        """Return the features' names, in the order of the columns."""
        return FEATURES if self._encode is None else FEATURES + ENCODED_FEATURES

    def features(self, question: str, context: Passages) -> Floats:
        """Return (questions, units, features): for the whole question, then for each of its parts.

        Linear in the context's length. Blocking.
        """
        counted = _Counted.of(self._vectors, context)
        questions = questions_of(question)
        encoded: list[list[Floats]] = [[] for _ in questions]
        if self._encode is not None:
            encoded = _encoded(self._encode, questions, context)
        found = [
            self._columns(one, counted, context) + more
            for one, more in zip(questions, encoded, strict=True)
        ]
        return np.stack([np.stack(columns, axis=1) for columns in found]).astype(np.float32)

    def _columns(self, question: str, counted: "_Counted", context: Passages) -> list[Floats]:
        columns = _lexical(self._vectors, self._vectors.ids(question), counted, context)
        columns += _shape(question, context)
        columns += [_best(columns[0] + columns[3], context.passages), _is_best(columns[7])]
        return columns + _title_letters(question, context)


def questions_of(question: str) -> tuple[str, ...]:
    """Return a question, and its parts where it asks for two to four things, each with a verb.

    `Who runs the hut, and how long is the walk?` asks for two.
    """
    parts = [part for part in _PART.split(question) if len(part.split()) >= _LEAST_PART_WORDS]
    return (question, *parts) if 2 <= len(parts) <= _MOST_PARTS else (question,)


@dataclass(frozen=True, slots=True)
class _Counted:
    """Tokens of all units in a row. starts: each unit's first. titles: tokens of each title.

    distinct: the tokens, each once. place: where in these each token is. rows: of the distinct
    ones. sums: of each unit's rows, by their weights.
    """

    starts: NDArray[np.intp]
    titles: Sequence[Sequence[int]]
    distinct: NDArray[np.intp]
    place: NDArray[np.intp]
    rows: Floats
    sums: Floats

    @classmethod
    def of(cls, vectors: TokenVectors, context: Passages) -> "_Counted":
        # A unit without words gets an unknown token, so that none is empty.
        rows = [vectors.ids(text) or [_UNKNOWN] for text in context.texts]
        lengths = np.array([len(row) for row in rows], np.intp)
        ids = np.fromiter((n for row in rows for n in row), np.intp, int(lengths.sum()))
        starts = np.r_[0, np.cumsum(lengths)[:-1]].astype(np.intp)
        # The passages of one document have the same title.
        titles = {title: vectors.ids(title) for title in set(context.titles)}
        distinct, place = np.unique(ids, return_inverse=True)
        return cls(
            starts, [titles[title] for title in context.titles], distinct, place,
            vectors.rows(distinct),
            vectors.sums(ids, np.repeat(np.arange(len(rows)), lengths), len(rows)),
        )  # fmt: skip


def _lexical(
    vectors: TokenVectors, asked: Sequence[int], counted: _Counted, context: Passages
) -> list[Floats]:
    passages = context.passages
    wanted = _heaviest(vectors, asked)
    rows, weights = vectors.rows(wanted), vectors.weights[wanted]
    question = _unit((weights @ rows)[None, :])[0]
    importance = np.asarray(weights / weights.sum(), np.float32)
    distinct, place = counted.distinct, counted.place
    # (tokens of the question, distinct tokens): 1 for the same token, 0 for unrelated ones.
    alike = np.clip((rows @ counted.rows.T - _UNRELATED) / (1 - _UNRELATED), 0.0, 1.0)
    exact = wanted[:, None] == distinct[None, :]
    stems = vectors.stems(distinct, _STEM_CHARS)
    inflected = (vectors.stems(wanted, _STEM_CHARS)[:, None] == stems[None, :]) | exact
    counts = {
        "bm25": _counts(exact, place, counted.starts),
        "stem_bm25": _counts(inflected, place, counted.starts),
    }
    lengths = np.diff(np.r_[counted.starts, len(place)])
    best = np.maximum.reduceat(alike[:, place], counted.starts, axis=1)
    found: dict[str, Floats] = {}
    each = np.arange(len(passages))
    # A passage's figures are those of its sentences together: exact, as counts are whole.
    sums = np.add.reduceat(counted.sums.T, context.starts, axis=1).T
    for level, first, spread, summed in (
        ("passage", context.starts, passages, sums), ("sentence", each, each, counted.sums),
    ):  # fmt: skip
        tokens = np.add.reduceat(lengths, first)
        for name, hits in counts.items():
            scores = _bm25(np.add.reduceat(hits, first, axis=1), tokens)
            found[f"{level}_{name}"] = _relative(scores)[spread]
        found[f"{level}_cosine"] = _centred(_unit(summed) @ question)[spread]
        matched = importance @ np.maximum.reduceat(best, first, axis=1)
        found[f"{level}_match"] = _centred(matched)[spread]
    at = {token: number for number, token in enumerate(wanted.tolist())}
    titles = [_title_match(title, at, importance) for title in counted.titles]
    match = found["sentence_match"]
    first = np.r_[True, passages[1:] != passages[:-1]]
    last = np.r_[first[1:], True]
    before = np.where(first, 0.0, np.r_[0.0, match[:-1]]).astype(np.float32)
    after = np.where(last, 0.0, np.r_[match[1:], 0.0]).astype(np.float32)
    named = np.array(titles, np.float32)[passages]
    return [*(found[name] for name in FEATURES[:8]), named, before, after]


def _heaviest(vectors: TokenVectors, asked: Sequence[int]) -> NDArray[np.intp]:
    """Return the question's distinct tokens; of more than 64 those that say most."""
    distinct = np.array(sorted(set(asked)) or [_UNKNOWN], np.intp)
    order = np.argsort(-vectors.weights[distinct], kind="stable")[:_MOST_QUESTION_TOKENS]
    return distinct[np.sort(order)]


def _unit(rows: Floats) -> Floats:
    return np.asarray(rows / (np.linalg.norm(rows, axis=1, keepdims=True) + 1e-9), np.float32)


def _counts(hits: NDArray[np.bool_], place: NDArray[np.intp], starts: NDArray[np.intp]) -> Floats:
    """Return how often each term occurs in each stretch, (terms, stretches).

    hits: (terms, distinct tokens), which of them is the term. place: each token's.
    """
    found = np.add.reduceat(hits.astype(np.float32)[:, place], starts, axis=1)
    return np.asarray(found, np.float32)


def _bm25(counts: Floats, tokens: NDArray[np.intp]) -> Floats:
    """Return BM25 scores of stretches. counts: (terms, stretches). tokens: of each stretch."""
    lengths = tokens.astype(np.float32)
    document = (counts > 0).sum(axis=1)
    idf = np.log1p((len(tokens) - document + 0.5) / (document + 0.5))
    norm = _K1 * (1 - _B + _B * lengths / lengths.mean())
    return np.asarray(idf @ (counts * (_K1 + 1) / (counts + norm[None, :])), np.float32)


def _relative(values: Floats) -> Floats:
    """Return values as shares of their highest, so that a threshold suits every context."""
    return np.asarray(values / max(float(values.max()), 1e-6), np.float32)


def _centred(values: Floats) -> Floats:
    return np.asarray(values - values.max(), np.float32)


def _title_match(title: Sequence[int], at: Mapping[int, int], importance: Floats) -> float:
    """Return the weight of the question's tokens in a title. at: place of each of these tokens."""
    # In their order: a sum of floats depends on it.
    found = sorted({at[token] for token in title if token in at})
    return float(importance[found].sum()) if found else 0.0


def _best(values: Floats, groups: NDArray[np.intp]) -> Floats:
    """Return how far each value's group is from the best group."""
    starts = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]])
    tops = np.maximum.reduceat(values, starts)
    ranks = np.argsort(np.argsort(-tops, kind="stable"), kind="stable")
    return np.asarray(1.0 / (1.0 + ranks), np.float32)[groups]


def _is_best(values: Floats) -> Floats:
    ranks = np.argsort(np.argsort(-values, kind="stable"), kind="stable")
    return np.asarray(1.0 / (1.0 + ranks), np.float32)


def _shape(question: str, context: Passages) -> list[Floats]:
    asks_number = float(_ASKS_NUMBER.search(question) is not None)
    asks_name = float(_ASKS_NAME.search(question) is not None)
    numbers = [asks_number * bool(_NUMBER.search(text)) for text in context.texts]
    names = [asks_name * bool(_CAPITALS.search(text)) for text in context.texts]
    lengths = [np.log1p(len(text)) / 5.0 for text in context.texts]
    return [np.asarray(values, np.float32) for values in (numbers, names, lengths)]


def _title_letters(question: str, context: Passages) -> list[Floats]:
    """Return the share of each title's trigrams of letters in the question, and to the best one.

    Letters find `Wingstop` by `wing stops`. A remark in parentheses is no part of the name.
    """
    asked = _trigrams(question)
    shares: dict[str, float] = {}
    for title in set(context.titles):
        short = title[:_TITLE_CHARS]
        found = _trigrams(_REMARK.sub("", short)) or _trigrams(short)
        shares[title] = len(found & asked) / max(len(found), 1)
    values = np.array([shares[title] for title in context.titles], np.float32)
    return [values[context.passages], _centred(values)[context.passages]]


def _trigrams(text: str) -> set[str]:
    letters = _NO_LETTER.sub("", text.casefold())
    return {letters[at : at + 3] for at in range(len(letters) - 2)}


def _encoded(encode: Encode, questions: Sequence[str], context: Passages) -> list[list[Floats]]:
    named = [
        f"{context.titles[passage]}: {text}" if context.titles[passage] else text
        for passage, text in zip(context.passages.tolist(), context.texts, strict=True)
    ]
    bounds = [*context.starts.tolist(), len(context.texts)]
    whole = [
        f"{title}: " + " ".join(context.texts[a:b])
        for title, a, b in zip(context.titles, bounds, bounds[1:], strict=False)
    ]
    vectors = encode([*questions, *named, *whole])
    found = []
    for similar in vectors[: len(questions)] @ vectors[len(questions) :].T:
        sentence, passage = similar[: len(named)], similar[len(named) :]
        spread = _centred(np.asarray(passage, np.float32))[context.passages]
        found.append([
            spread, _centred(np.asarray(sentence, np.float32)), _best(spread, context.passages),
        ])  # fmt: skip
    return found


class Model(BaseModel):
    """A fitted model. score = sigmoid(features * weights + bias).

    threshold: units of at least this score are kept. recall: share of answers that this threshold
    keeps, with the certified lower bound. pairs: from which it was chosen. texts: their digest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    encoder: EncoderName
    features: tuple[str, ...]
    weights: tuple[float, ...]
    bias: float
    threshold: float
    target_recall: float
    recall: float
    recall_lower: float
    confidence: float
    pairs: int
    texts: str

    def scores(self, features: Floats) -> Floats:
        """Return each unit's score in [0, 1]: that of the question which it suits best.

        features: (questions, units, features) as a Ranker's.
        """
        logits = (features @ np.asarray(self.weights, np.float32)).max(axis=0) + self.bias
        return np.asarray(1.0 / (1.0 + np.exp(-logits)), np.float32)


class ModelFile(BaseModel):
    """The models of each way to compute similarities."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: tuple[Model, ...]

    def of(self, encoder: EncoderName) -> Model:
        """Return the model. Raises InvalidSettings where the file has none."""
        for model in self.models:
            if model.encoder == encoder:
                return model
        raise InvalidSettings(
            f"the context model has none for the encoder {encoder!r}",
            field="context.encoder",
            fix="fit one with narrowgate context fit",
        )


def load_models(file: Path | None = None) -> ModelFile:
    """Return the models in a file; the shipped ones where None. Raises InvalidSettings."""
    try:
        text = (
            files("serving.context").joinpath("model.json").read_text(encoding="utf-8")
            if file is None
            else read_plain_text(file)
        )
        found = ModelFile.model_validate_json(text)
    except (OSError, ValueError) as error:
        is_other = isinstance(error, ValidationError)
        kind = "not a context model" if is_other else f"unreadable: {unread_because(error)}"
        raise InvalidSettings(
            f"{str(file)!r} is {kind}", field="context.model", fix="narrowgate context fit FILE"
        ) from error
    for model in found.models:
        wanted = FEATURES if model.encoder == "tokens" else FEATURES + ENCODED_FEATURES
        if model.features != wanted or len(model.weights) != len(wanted):
            raise InvalidSettings(
                f"{str(file)!r} was fitted with other features than this version computes",
                field="context.model",
                fix="narrowgate context fit FILE",
            )
    return found


def models_text(models: Sequence[Model]) -> str:
    """Return the JSON of a model file."""
    document = ModelFile(models=tuple(models)).model_dump(mode="json")
    return json.dumps(document, indent=1) + "\n"
