"""The operator's own prices: a YAML file that takes precedence over the table."""

import hashlib
import re
from collections.abc import Hashable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from serving.contracts.errors import InvalidSettings
from serving.contracts.frontier_settings import FrontierModelName
from serving.contracts.plain_file import read_plain
from serving.contracts.prices import STANDARD_NAMES, ModelPrices, PriceStep
from serving.contracts.task_spec import folded_name
from serving.contracts.validation_words import problem_place, problem_with_value
from serving.contracts.yaml_text import BoundedNesting
from serving.ledger.pricing.table import by_class

FIELD = "ledger.prices_file"
_FIX = "docs/ledger.md shows what a price file holds"


def _plain_number(value: object) -> object:
    """Refuse the notations that Python reads as numbers and people may not: 1_000, -0, 1e3, 010."""
    digits = r"(0|[1-9][0-9]*)(\.[0-9]+)?|\.[0-9]+"
    if isinstance(value, str) and not re.fullmatch(digits, value):
        raise ValueError(f"{value!r:.60} is not a number such as 12 or 0.25")
    return value


MtokUsd = Annotated[
    Decimal,
    BeforeValidator(_plain_number),
    Field(ge=0, le=1_000_000, decimal_places=6, allow_inf_nan=False),
]
"""US dollars per million tokens; six decimals make whole picodollars per token."""
_Threshold = Annotated[int, BeforeValidator(_plain_number), Field(gt=0, le=10**9)]


def _once(given: object, validate: ValidatorFunctionWrapHandler) -> object:
    """Refuse keys in two notations, `272000` and `272000.0`: one price would be lost."""
    found = validate(given)
    if isinstance(given, dict) and isinstance(found, dict) and len(found) < len(given):
        raise ValueError("one key is written twice, in two ways")
    return found


def _not_standard(name: str) -> str:
    if name in STANDARD_NAMES:
        raise ValueError(f"{name!r} is the standard tier, whose prices are the model's own")
    return name


def _distinct(models: dict[str, "_Model"]) -> dict[str, "_Model"]:
    """Refuse names that look the same. Names must match exactly, so one of them is a mistake."""
    seen: dict[str, str] = {}
    for name in models:
        folded = folded_name(name)
        if folded in seen:
            raise ValueError(f"{name!r} differs from {seen[folded]!r} in nothing that can be seen")
        seen[folded] = name
    return models


_TierName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$"), AfterValidator(_not_standard)]


class _Step(BaseModel):
    """Prices of inputs of one length.

    A class that is left out costs what input does; 1-hour writes cost what 5-minute writes do.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: MtokUsd
    output: MtokUsd
    cache_read: MtokUsd | None = None
    cache_write_5m: MtokUsd | None = None
    cache_write_1h: MtokUsd | None = None

    def step(self, over: int) -> PriceStep:
        prices = by_class(
            self.input, self.output, self.cache_read, self.cache_write_5m, self.cache_write_1h
        )
        return PriceStep(over, prices)


class _Tier(_Step):
    """over: prices of longer inputs, by the length in tokens above which all tokens cost them."""

    over: Annotated[dict[_Threshold, _Step], WrapValidator(_once)] = Field(default_factory=dict)

    def steps(self) -> tuple[PriceStep, ...]:
        longer = sorted(self.over.items())
        return (self.step(0), *(step.step(start) for start, step in longer))


class _Model(_Tier):
    """service_tiers: by the name that the provider reports."""

    service_tiers: dict[_TierName, _Tier] = Field(default_factory=dict)


# A YAML document of this size takes a minute to parse; the largest table has 200 kB.
_MOST_BYTES = 4 * 2**20
_FILE = TypeAdapter(Annotated[dict[FrontierModelName, _Model], AfterValidator(_distinct)])


class _TextLoader(BoundedNesting, yaml.BaseLoader):
    """Reads every scalar as text, so that a price never passes through a float.

    Without aliases: a few hundred bytes of them stand for a billion values.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Refuse an alias."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias (*name), which a price file may not have")
        return super().compose_node(parent, index)

    def construct_mapping(
        self, node: yaml.MappingNode, deep: bool = False
    ) -> dict[Hashable, object]:
        """Refuse a key that is written twice."""
        seen: set[str] = set()
        for key, _ in node.value:
            # A key that is no text is refused below.
            name = str(key.value)
            if name in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{name!r} is written twice", node.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep)


def load_price_file(path: Path) -> Mapping[str, ModelPrices]:
    """Return the prices in a file by `provider/model`. Reads it, blocking.

    Raises InvalidSettings, naming the field of the file, where it does not hold prices.
    """
    try:
        content = read_plain(path, _MOST_BYTES)
        document = yaml.load(content.decode(), _TextLoader)  # noqa: S506 - makes text only
        models = _FILE.validate_python(document or {})
    except OSError as error:
        raise InvalidSettings(
            f"{str(path)!r} cannot be read: {error.strerror}", field=FIELD, fix="correct the path"
        ) from error
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise InvalidSettings(f"{str(path)!r} is not YAML: {why}", field=FIELD, fix=_FIX) from error
    except ValidationError as error:
        raise _invalid(path, error) from error
    source = f"prices_file sha256:{hashlib.sha256(content).hexdigest()[:16]}"
    return {name: _model_prices(name, source, model) for name, model in models.items()}


def _model_prices(name: str, source: str, model: _Model) -> ModelPrices:
    tiers = {tier: prices.steps() for tier, prices in model.service_tiers.items()}
    return ModelPrices(name, source, model.steps(), tiers)


def _invalid(path: Path, error: ValidationError) -> InvalidSettings:
    problems = error.errors(include_url=False)
    reasons = [
        f"{problem_place(item, 'the file')}: {problem_with_value(item)}"
        for item in problems[:_SHOWN]
    ]
    if len(problems) > _SHOWN:
        reasons.append(f"and {len(problems) - _SHOWN} more")
    place = problem_place(problems[0], "")
    return InvalidSettings(
        f"prices in {str(path)!r} are invalid: " + "; ".join(reasons),
        field=f"{FIELD}.{place}" if place else FIELD,
        fix=_FIX,
    )


_SHOWN = 10
