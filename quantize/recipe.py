"""Recipes: one YAML file each, validated, with a stable digest.

A recipe states the precision of weights and activations and how they are rounded. It names one
library. Validation refuses combinations that the library does not support.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from serving.contracts.errors import InvalidRecipe
from serving.contracts.plain_file import read_plain
from serving.contracts.validation_words import problem_place, problem_with_value
from serving.contracts.yaml_text import UnreadableYaml, parse_yaml

Bits = Literal[4, 8]
GroupSize = Annotated[int, Field(ge=16, le=1024, multiple_of=8)]


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
    return pattern


Pattern = Annotated[
    str, Field(min_length=1, max_length=200, pattern=r"^[^:]*$"), AfterValidator(_compiles)
]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CalibrationNeed(_Frozen):
    """The calibration data that the recipe needs."""

    samples: int = Field(default=256, ge=1, le=100_000, description="sequences")
    max_tokens: int = Field(default=512, ge=16, le=32_768, description="longer ones are left out")
    plain_share: float = Field(
        default=0.0,
        ge=0.0,
        le=1.0,
        description="share of texts fed as a user's turn, without a task's prompt",
    )


class _Recipe(_Frozen):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    description: str = Field(min_length=1, max_length=1000)
    keep_16bit: tuple[Pattern, ...] = Field(
        default=(), description="layers kept in 16 bits: regular expressions on module names"
    )

    def digest(self) -> str:
        """Return `sha256:` and the hex digest of the recipe's canonical JSON."""
        content = self.model_dump(mode="json")
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


class LlmCompressorRecipe(_Recipe):
    """Linear layers through llm-compressor, written in the compressed-tensors format.

    smoothing moves outliers between activations and weights before rounding: SmoothQuant (Xiao et
    al., 2023) or AWQ (Lin et al., 2024). rounding: GPTQ (Frantar et al., 2023) or to the nearest.
    """

    library: Literal["llm-compressor"]
    weight_bits: Bits
    weight_type: Literal["int", "float"] = "int"
    symmetric: bool = True
    group_size: tuple[GroupSize, ...] | None = Field(
        default=None,
        description="in order of preference, the first that divides every layer; none: per channel",
    )
    activations: Literal["16-bit", "8-bit dynamic per token"] = "16-bit"
    smoothing: Literal["none", "smoothquant", "awq"] = "none"
    smoothing_strength: float = Field(default=0.5, ge=0.0, le=1.0, description="SmoothQuant alpha")
    awq_grid: int = Field(default=20, ge=2, le=100, description="AWQ: scales tried for each layer")
    rounding: Literal["gptq", "nearest"] = "gptq"
    scale_search: Literal["minmax", "mse"] = Field(
        default="minmax", description="how a group's scale is found from its weights"
    )
    act_order: Literal["none", "static", "group"] = Field(
        default="static", description="GPTQ: columns of large activations are rounded first"
    )
    dampening: float = Field(default=0.01, gt=0.0, le=1.0, description="GPTQ, of the mean diagonal")
    keep_outliers: float | None = Field(
        default=None,
        gt=1.0,
        description="layers that rounding hurts this many times more than the median of their kind "
        "stay in 16 bits; measured at the start of the run",
    )
    eight_bit: tuple[Pattern, ...] = Field(
        default=(), description="layers rounded to 8 bits with 8-bit activations instead"
    )
    calibration: CalibrationNeed | None = CalibrationNeed()

    @model_validator(mode="after")
    def _possible(self) -> Self:
        needs_data = self.rounding == "gptq" or self.smoothing != "none"
        if needs_data and self.calibration is None:
            raise ValueError("GPTQ, SmoothQuant and AWQ need calibration data")
        if self.keep_outliers is not None and self.calibration is None:
            raise ValueError("keep_outliers needs calibration data")
        if self.weight_type == "float" and (self.weight_bits != 8 or self.group_size is not None):
            raise ValueError("floating-point weights are 8 bits wide (FP8) and have no groups")
        if self.activations != "16-bit" and self.weight_bits != 8:
            raise ValueError("8-bit activations go with 8-bit weights")
        if self.activations != "16-bit" and not self.symmetric:
            raise ValueError("the kernels for 8-bit activations take only symmetric weights")
        if self.weight_bits == 8 and not self.symmetric:
            raise ValueError("vLLM's 8-bit weight-only kernels take only symmetric weights")
        if self.eight_bit and self.weight_bits != 4:
            raise ValueError("eight_bit raises the precision of 4-bit recipes only")
        return self


class GptqModelRecipe(_Recipe):
    """GPTQ through GPTQModel, written in AutoGPTQ's format.

    AutoGPTQ ended in 2024; GPTQModel is its maintained successor and writes the same files.
    """

    library: Literal["gptqmodel"]
    weight_bits: Bits = 4
    symmetric: bool = True
    group_size: tuple[GroupSize, ...] = (128, 64, 32)
    act_order: Literal["none", "full", "group"] = Field(
        default="group", description="group: reordered within groups, free at run time"
    )
    dampening: float = Field(default=0.05, gt=0.0, lt=1.0, description="of the mean diagonal")
    scale_search_norm: float = Field(
        default=0.0, ge=0.0, le=4.0, description="norm of the search for a group's scale; 0: none"
    )
    calibration: CalibrationNeed = CalibrationNeed()

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.keep_16bit:
            raise ValueError("AutoGPTQ's format has no layers in another precision")
        return self


class BitsAndBytesRecipe(_Recipe):
    """NF4 (Dettmers et al., 2023) or LLM.int8() (2022) by bitsandbytes, without calibration."""

    library: Literal["bitsandbytes"]
    format: Literal["nf4", "int8"]
    double_quantization: bool = Field(default=False, description="NF4: quantize the scales as well")
    calibration: None = None

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.format == "int8" and self.double_quantization:
            raise ValueError("double_quantization is only for nf4")
        return self

    @property
    def weight_bits(self) -> Bits:
        """Return the width of a weight."""
        return 4 if self.format == "nf4" else 8


Recipe = Annotated[
    LlmCompressorRecipe | GptqModelRecipe | BitsAndBytesRecipe, Field(discriminator="library")
]
_ADAPTER: TypeAdapter[LlmCompressorRecipe | GptqModelRecipe | BitsAndBytesRecipe] = TypeAdapter(
    Recipe
)
_SUFFIX = ".yaml"
_LIBRARIES = ("llm-compressor", "gptqmodel", "bitsandbytes")


def parse_recipe(content: bytes | str, source: str) -> Recipe:
    """Return the recipe that a YAML file holds. source: the file's name, for messages.

    Raises InvalidRecipe, which names the field.
    """
    try:
        return _ADAPTER.validate_python(parse_yaml(content))
    except UnreadableYaml as error:
        raise InvalidRecipe(
            f"{source} is {error}", field=source, fix="correct it there; it must be YAML in UTF-8"
        ) from error
    except ValidationError as error:
        problems = [
            f"{problem_place(_in_file(item), 'recipe')}: {problem_with_value(item)}"
            for item in error.errors(include_url=False)
        ]
        raise InvalidRecipe(
            f"{source} is not a recipe: " + "; ".join(problems),
            field=source,
            fix="docs/quantize.md lists every field",
        ) from error


def _in_file(problem: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a problem with the path of its field in the file, which has no level for a library."""
    place = problem["loc"]
    return {**problem, "loc": place[1:] if place[:1] and place[0] in _LIBRARIES else place}


def built_in_recipes() -> Mapping[str, Recipe]:
    """Return the shipped recipes by name. Reads files."""
    found = [
        parse_recipe(entry.read_bytes(), entry.name)
        for entry in resources.files("quantize.recipes").iterdir()
        if entry.name.endswith(_SUFFIX)
    ]
    return {recipe.name: recipe for recipe in sorted(found, key=lambda recipe: recipe.name)}


def load_recipe(name_or_file: str) -> Recipe:
    """Return a shipped recipe by its name or a user's by its file.

    Raises InvalidRecipe.
    """
    path = Path(name_or_file).expanduser()
    if path.suffix in {".yaml", ".yml"}:
        try:
            content = read_plain(path)
        except OSError as error:
            raise InvalidRecipe(
                f"recipe file {name_or_file!r} cannot be read: {error.strerror}", field="recipe"
            ) from error
        return parse_recipe(content, path.name)
    recipes = built_in_recipes()
    if name_or_file not in recipes:
        raise InvalidRecipe(
            f"no recipe {name_or_file!r}",
            field="recipe",
            fix="use one of: " + ", ".join(recipes) + "; or name a YAML file of your own",
        )
    return recipes[name_or_file]


def with_samples(recipe: Recipe, samples: int | None) -> Recipe:
    """Return the recipe with another number of calibration samples, the same one for None.

    Raises InvalidRecipe for a recipe that does not calibrate.
    """
    if samples is None:
        return recipe
    if recipe.calibration is None:
        raise InvalidRecipe(
            f"--samples {samples}: recipe {recipe.name!r} needs no calibration data",
            field="samples",
            fix="leave --samples out",
        )
    need = recipe.calibration.model_copy(update={"samples": samples})
    return recipe.model_copy(update={"calibration": need})
