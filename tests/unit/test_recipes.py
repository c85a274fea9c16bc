"""Recipes: the shipped ones hold, impossible ones are refused, the digest follows the values."""

from pathlib import Path

import pytest
import yaml

from quantize.recipe import built_in_recipes, load_recipe, parse_recipe
from serving.contracts.errors import InvalidRecipe

FOLDER = Path(__file__).parents[2] / "quantize" / "recipes"
INT4 = """
name: mine
description: four bits
library: llm-compressor
weight_bits: 4
group_size: [64]
"""


def test_every_file_is_a_recipe_of_its_name() -> None:
    assert set(built_in_recipes()) == {path.stem for path in FOLDER.glob("*.yaml")}


def test_the_promised_recipes_are_shipped() -> None:
    assert set(built_in_recipes()) >= {
        "int8-w8a8", "int8-w8a16", "int4-w4a16-gptq", "int4-w4a16-awq", "int4-gptq", "bnb-nf4",
        "bnb-int8",
    }  # fmt: skip


def test_the_digest_ignores_spelling_and_follows_values() -> None:
    digest = parse_recipe(INT4, "a").digest()
    assert parse_recipe("# a comment\n" + INT4 + "symmetric: true\n", "a").digest() == digest
    assert parse_recipe(INT4 + "symmetric: false\n", "a").digest() != digest
    assert parse_recipe(INT4 + "dampening: 0.02\n", "a").digest() != digest


def test_the_digests_of_the_shipped_recipes_are_distinct() -> None:
    digests = [recipe.digest() for recipe in built_in_recipes().values()]
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("typo: 1", "not a recipe: typo: there is no such field"),
        ("activations: 8-bit dynamic per token", "8-bit activations go with 8-bit weights"),
        ("calibration: null", "need calibration data"),
        ("weight_type: float", "no groups"),
        ("group_size: [12]", "not a recipe: group_size.0: it must be a multiple of 8"),
        ("keep_16bit: ['(']", "not a regular expression"),
        ("dampening: 0", "dampening"),
        ("library: auto-gptq", "auto-gptq"),
    ],
)
def test_impossible_recipes_are_refused_with_their_field(line: str, complaint: str) -> None:
    content = {**yaml.safe_load(INT4), **yaml.safe_load(line)}
    with pytest.raises(InvalidRecipe, match=complaint.replace("(", r"\(")) as caught:
        parse_recipe(yaml.safe_dump(content), "mine.yaml")
    assert caught.value.field == "mine.yaml"


def test_a_recipe_that_is_not_a_mapping_is_refused() -> None:
    for text in ("- 1", "a: [", "", "7", "{}", "library: x"):
        with pytest.raises(InvalidRecipe) as caught:
            parse_recipe(text, "mine.yaml")
        for inside in ("Unable", "tag", "Input", "discriminator"):
            assert inside not in caught.value.message


def test_a_file_of_the_users_is_taken_and_an_unknown_name_is_not(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(INT4, encoding="utf-8")
    assert load_recipe(str(file)).name == "mine"
    with pytest.raises(InvalidRecipe) as caught:
        load_recipe("int8-w8a9")
    assert "int8-w8a8" in (caught.value.fix or "")
    with pytest.raises(InvalidRecipe, match=r"recipe file .*cannot be read: No such file"):
        load_recipe(str(tmp_path / "other.yaml"))
