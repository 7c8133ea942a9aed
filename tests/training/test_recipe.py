"""Recipes: every shipped one loads and explains each of its keys; mistakes are named in one line."""

from pathlib import Path

import pytest
import yaml

import mmvl
from mmvl.shipped import MMVL_TINY
from mmvl.training.recipe import ContrastiveRecipe, PreferenceRecipe, TokenizerRecipe, TrainRecipe, load_recipe

RECIPES = Path(mmvl.__file__).parent / "recipes"
SHIPPED = sorted(RECIPES.rglob("*.yaml"))
# what made mmvl-tiny: they stay
AS_RUN = {"tokenizer", "text", "vision-words", "vision-language", "reading", "pages", "documents"}
OWN = "own"  # goes on with somebody's own pictures, from what is shipped
GROWN = "runs/tiny/grown/model"  # no stage's, but what `mmvl grow` writes
# stages of the full model -> the tiny recipe with the same keys
STAGES = {
    "text-128k": "long-text",
    "text-512k": "long-text",
    "text-1m": "long-text",
    "contrastive": "contrastive",
    "contrastive-336": "contrastive",
    "alignment": "alignment",
    "understanding": "understanding",
    "instruction": "instruction",
    "preference": "preference",
}


def keys(section) -> set[str]:
    """All keys of a recipe, with dots for nesting; of sources only that there are some."""
    if not isinstance(section, dict):
        return set()
    found = {key: value for key, value in section.items() if key != "lr_scale"}
    return set(section) | {f"{key}.{inner}" for key, value in found.items() for inner in keys(value)}


def test_there_are_recipes_of_every_stage():
    assert {p.stem for p in (RECIPES / "tiny").glob("*.yaml")} == AS_RUN | {OWN} | set(STAGES.values())
    assert {p.stem for p in (RECIPES / "full").glob("*.yaml")} == {"tokenizer", "text"} | set(STAGES)


@pytest.mark.parametrize(("full", "tiny"), STAGES.items())
def test_full_and_tiny_recipes_have_the_same_keys_and_all_there_are(full, tiny):
    ours, theirs = (yaml.safe_load((RECIPES / f).read_text()) for f in (f"full/{full}.yaml", f"tiny/{tiny}.yaml"))
    assert keys(ours) == keys(theirs)
    recipe = load_recipe(RECIPES / f"full/{full}.yaml")
    kind = {"preference": PreferenceRecipe, "contrastive": ContrastiveRecipe}.get(recipe.stage, TrainRecipe)
    assert type(recipe) is kind
    assert keys(recipe.model_dump()) == keys(ours), "every key stands in the file, defaults too"
    assert keys(yaml.safe_load((RECIPES / "full/text.yaml").read_text())) == keys(
        yaml.safe_load((RECIPES / "full/text-128k.yaml").read_text())
    )


def test_the_model_that_comes_with_mmvl_has_a_name_unless_a_directory_has_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_recipe(RECIPES / "tiny/own.yaml").init_from == MMVL_TINY
    (tmp_path / "mmvl-tiny").mkdir()
    assert load_recipe(RECIPES / "tiny/own.yaml").init_from == Path("mmvl-tiny")


@pytest.mark.parametrize("directory", ["full", "tiny"])
def test_each_stage_starts_from_what_another_leaves(directory):
    recipes = [load_recipe(path) for path in (RECIPES / directory).glob("*.yaml")]
    models = {GROWN, str(MMVL_TINY), *(str(r.out / "model") for r in recipes if r.stage != "tokenizer")}
    tokenizers = {str(r.out) for r in recipes if r.stage == "tokenizer"}
    for recipe in recipes:
        for key in ("init_from", "vision_from"):
            assert str(getattr(recipe, key, None) or next(iter(models))) in models, (recipe.name, key)
        assert str(getattr(recipe, "tokenizer", None) or next(iter(tokenizers))) in tokenizers


def test_the_published_numbers_stand_in_the_full_recipes():
    """arXiv 2501.08313 sections 4.2, 6.2.2 and 6.3."""
    full = {p.stem: load_recipe(p) for p in (RECIPES / "full").glob("*.yaml")}
    tokens = {name: r.budget.tokens / 1e9 for name, r in full.items() if isinstance(r, TrainRecipe)}
    assert (tokens["alignment"], tokens["understanding"] * 20 / 21, tokens["instruction"]) == (80, 420, 44.8)
    assert (tokens["text"], tokens["text-128k"], tokens["text-512k"], tokens["text-1m"]) == (11400, 300, 32, 26)
    assert [full[f"text-{n}"].rope_theta for n in ("128k", "512k", "1m")] == [5e6, 1e7, 1e7]
    assert full["alignment"].trainable == ["vision_tower", "multi_modal_projector"]
    weights = [s.weight for s in full["understanding"].data.sources]
    assert weights[0] / weights[1] == 20
    assert (full["contrastive"].budget.pairs, full["contrastive-336"].budget.pairs) == (37 * 10**9, 1_200_000_000)
    assert full["contrastive"].contrastive.text.context == 76


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_shipped_recipes_load(path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert isinstance(recipe, TokenizerRecipe) == (path.stem == "tokenizer")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_shares_are_shares(path):
    """Weights that are written as parts of one add up to one, so that what stands there is what is drawn."""
    recipe = load_recipe(path)
    weights = [source.weight for source in (recipe.sources if path.stem == "tokenizer" else recipe.data.sources)]
    assert max(weights) >= 1 or sum(weights) == pytest.approx(1)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: f"{p.parent.name}-{p.stem}")
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
        ("parallel.experts=2", "unknown key 'parallel.experts'"),
        ("checkpoint_layers=some", "checkpoint_layers"),
        ("max_positions=8", "must not exceed max_positions"),
        ("data.sources.0.weight_before=1", "go together"),
        ("data.transition_tokens=9", "go together"),
        ("data.sources.0.weight=0", "never used"),
        ("data.sources.0.url=pipe:touch x", "fetched from http:// and https:// addresses only"),
        ("stage=dream", "must be one of train, preference, contrastive, tokenizer"),
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
