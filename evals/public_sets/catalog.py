"""The catalog of public data sets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Row = dict[str, Any]
"""A record of the source, or a row in a suite's format."""

FLORES = {"en": "eng_Latn", "de": "deu_Latn", "fr": "fra_Latn", "es": "spa_Latn"}
"""The language names in FLORES; rows of its single-language tables have the part before `_`."""

_WNUT = ("corporation", "creative-work", "group", "location", "person", "product")
_CONLL = {"PER": "person", "ORG": "organization", "LOC": "location", "MISC": "miscellaneous"}


@dataclass(frozen=True, slots=True)
class PublicSet:
    """A public data set. task: the built-in task for it. configs, folder: the part of the
    repository. names: of the source's class numbers, in order. renamed: the source's names to the
    task's.
    """

    name: str
    kind: Literal["classification", "extraction", "translation"]
    task: str
    hub_id: str
    split: str
    configs: tuple[str | None, ...] = (None,)
    folder: str | None = None
    names: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)


def _bio(types: Sequence[str]) -> tuple[str, ...]:
    return ("O", *(f"{prefix}-{name}" for name in types for prefix in "BI"))


# CoNLL-2003 and WNUT-17 are loading scripts on their main branch, which `datasets` no longer runs;
# a commit of their refs/convert/parquet holds the same rows in `folder`.
SETS = {
    found.name: found
    for found in (
        PublicSet("sst2", "classification", "sentiment", "stanfordnlp/sst2", "validation",
                  names=("negative", "positive")),
        PublicSet("tweet_eval", "classification", "sentiment", "cardiffnlp/tweet_eval", "test",
                  configs=("sentiment",), names=("negative", "neutral", "positive")),
        PublicSet("ag_news", "classification", "topic", "fancyzhx/ag_news", "test",
                  names=("World", "Sports", "Business", "Sci/Tech"),
                  renamed={"Sci/Tech": "Sci-Tech"}),
        PublicSet("conll2003", "extraction", "ner", "eriktks/conll2003", "test",
                  folder="conll2003", names=_bio(tuple(_CONLL)), renamed=_CONLL),
        PublicSet("wnut17", "extraction", "ner", "leondz/wnut_17", "test", folder="wnut_17",
                  names=_bio(_WNUT),
                  renamed={"corporation": "organization", "group": "organization",
                           "creative-work": "miscellaneous", "product": "miscellaneous"}),
        PublicSet("flores", "translation", "translation", "openlanguagedata/flores_plus",
                  "devtest", configs=tuple(FLORES.values())),
    )
}  # fmt: skip
