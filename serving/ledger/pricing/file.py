"""Prices of your own: a YAML file that beats the table."""

import hashlib
from collections.abc import Hashable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from serving.contracts.errors import InvalidSettings
from serving.contracts.frontier_settings import FrontierModelName
from serving.contracts.prices import STANDARD_NAMES, ModelPrices, PriceStep
from serving.ledger.pricing.table import by_class

FIELD = "ledger.prices_file"
_FIX = "docs/ledger.md shows what a price file holds"

MtokUsd = Annotated[Decimal, Field(ge=0, le=1_000_000, decimal_places=6, allow_inf_nan=False)]
"""US dollars a million tokens; six decimals make whole picodollars a token."""
_Threshold = Annotated[int, Field(gt=0, le=10**9)]


def _not_standard(name: str) -> str:
    if name in STANDARD_NAMES:
        raise ValueError("is the standard tier, whose prices are the model's own")
    return name


_TierName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$"), AfterValidator(_not_standard)]


class _Step(BaseModel):
    """One level. Classes left out cost what input does, 1-hour writes what 5-minute writes do."""

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
    """over: by length of input, tokens; what is longer costs that, for all of its tokens."""

    over: dict[_Threshold, _Step] = Field(default_factory=dict)

    def steps(self) -> tuple[PriceStep, ...]:
        longer = sorted(self.over.items())
        return (self.step(0), *(step.step(start) for start, step in longer))


class _Model(_Tier):
    """service_tiers: by the name that the provider reports."""

    service_tiers: dict[_TierName, _Tier] = Field(default_factory=dict)


_FILE = TypeAdapter(dict[FrontierModelName, _Model])


class _TextLoader(yaml.BaseLoader):
    """Reads every scalar as the text that is written: a price never passes through a float."""

    def construct_mapping(
        self, node: yaml.MappingNode, deep: bool = False
    ) -> dict[Hashable, object]:
        """Refuse a key that is written twice: of two prices, which one holds?"""
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} is written twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


def load_price_file(path: Path) -> Mapping[str, ModelPrices]:
    """Return the prices in a file by `provider/model`. Reads it, blocking.

    Raises InvalidSettings, naming the field of the file, where it does not hold prices.
    """
    try:
        content = path.read_bytes()
        document = yaml.load(content.decode(), _TextLoader)  # noqa: S506 - makes text alone
        models = _FILE.validate_python(document or {})
    except OSError as error:
        raise InvalidSettings(
            f"{str(path)!r} cannot be read: {error.strerror}", field=FIELD, fix="correct the path"
        ) from error
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise InvalidSettings(
            f"{str(path)!r} is not YAML: {error}", field=FIELD, fix=_FIX
        ) from error
    except ValidationError as error:
        raise _invalid(path, error) from error
    source = f"prices_file sha256:{hashlib.sha256(content).hexdigest()[:16]}"
    return {name: _model_prices(name, source, model) for name, model in models.items()}


def _model_prices(name: str, source: str, model: _Model) -> ModelPrices:
    tiers = {tier: prices.steps() for tier, prices in model.service_tiers.items()}
    return ModelPrices(name, source, model.steps(), tiers)


def _invalid(path: Path, error: ValidationError) -> InvalidSettings:
    problems = error.errors(include_url=False, include_context=False, include_input=True)
    told = [f"{_dotted(item['loc'])}: {item['msg']}, not {item['input']!r}" for item in problems]
    return InvalidSettings(
        f"prices in {str(path)!r} do not hold: " + "; ".join(told),
        field=f"{FIELD}.{_dotted(problems[0]['loc'])}",
        fix=_FIX,
    )


def _dotted(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location) or "the file"
