"""Recipes: every shipped one loads and explains each of its keys; mistakes are named in one line."""

from pathlib import Path

import pytest
import yaml

import mmvl
from mmvl.training.recipe import TokenizerRecipe, load_recipe

SHIPPED = sorted((Path(mmvl.__file__).parent / "recipes").rglob("*.yaml"))


def test_there_are_recipes_of_every_stage():
    assert {p.stem for p in SHIPPED} == {"tokenizer", "text", "vision-words", "vision-language", "reading"}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_recipes_load(path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert isinstance(recipe, TokenizerRecipe) == (path.stem == "tokenizer")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_every_key_of_a_shipped_recipe_has_a_comment(path):
    """A section (a key alone on its line) is explained by its keys."""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        code, _, comment = line.partition("#")
        if code.strip() and not code.rstrip().endswith(":"):
            assert len(comment.split()) >= 2, f"{path.name}, line {number}: {line}"


def test_overrides_reach_into_sections_and_lists(recipe_file):
    recipe = load_recipe(recipe_file, ["optimizer.lr=1e-4", "data.sources.1.weight=7", "budget.minutes=2"])
    assert (recipe.optimizer.lr, recipe.data.sources[1].weight, recipe.budget.minutes) == (1e-4, 7.0, 2.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimiser": {}}, "unknown key 'optimiser'"),
        ({"seed": None}, "seed"),
        ({"precision": "int3"}, "precision"),
        ({"init_from": "x"}, "not both"),
        ({"model_config_file": None, "tokenizer": None}, "give model_config_file"),
    ],
)
def test_mistakes_are_named(recipe_file, change, message):
    recipe_file.write_text(yaml.safe_dump(yaml.safe_load(recipe_file.read_text()) | change))
    with pytest.raises(ValueError) as e:
        load_recipe(recipe_file)
    assert message in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lrr=1", "unknown key 'optimizer.lrr'"),
        ("data.workers=3", "multiple of workers"),
        ("data.max_sample_tokens=100000", "max_sample_tokens must not exceed"),
        ("lr", "write key=value"),
        ("seed.x=1", "seed is a value, not a section"),
        ("data.sources.9.weight=1", "data.sources has no item 9"),
        ("data.sources.x.weight=1", "data.sources has no item x"),
    ],
)
def test_mistaken_overrides_are_named(recipe_file, override, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        load_recipe(recipe_file, [override])


def test_files_that_are_no_recipes(tmp_path):
    with pytest.raises(FileNotFoundError, match="no recipe"):
        load_recipe(tmp_path / "none.yaml")
    for text, message in [("- a", "must be a mapping"), ("a: [", "not valid YAML"), ("name: x", "stage")]:
        (tmp_path / "r.yaml").write_text(text)
        with pytest.raises(ValueError, match=message) as e:
            load_recipe(tmp_path / "r.yaml")
        assert "\n" not in str(e.value)
