"""Every recipe is built, echoed and run for two steps."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from forethought.app.demo.settings import full, quick
from forethought.app.recipes import PRETRAIN_RECIPES, RECIPES
from forethought.app.world.recipes import WORLD_RECIPES
from forethought.core.config import difference, from_dict, to_dict
from forethought.pretrain import fit
from tests.app.workshop import small_text


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_survives_json_and_differs_from_itself_in_nothing(name: str):
    recipe = RECIPES[name]()
    back = from_dict(type(recipe), json.loads(json.dumps(to_dict(recipe))))
    assert back == recipe
    assert difference(back, recipe) == {}
    assert RECIPES[name].__doc__


@pytest.mark.parametrize("demo", [full, quick])
def test_a_demo_config_survives_json(demo):
    assert from_dict(type(demo()), json.loads(json.dumps(to_dict(demo())))) == demo()


@pytest.mark.parametrize("name", sorted(PRETRAIN_RECIPES))
def test_a_recipe_runs(name: str, tmp_path: Path):
    recipe = PRETRAIN_RECIPES[name]()
    settings = replace(
        recipe,
        sources=(str(small_text(tmp_path / "text.jsonl", 30)),),
        corpus=replace(recipe.corpus, vocab_size=300, validation_share=0.2, test_share=0.2),
        loop=replace(recipe.loop, steps=2),
        batch_size=2,
        context=32,
        baselines=False,
    )
    result = fit(settings, tmp_path / "run", recipe=f"pretrain.{name}", recipe_config=recipe)
    echoed = json.loads((tmp_path / "run" / "config.json").read_text())
    assert echoed["recipe"] == f"pretrain.{name}"
    assert echoed["difference"]["loop.steps"]["given"] == 2
    assert result["steps"] == 2
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_the_listing_knows_every_table_and_imports_no_room():
    for room, tables in {"pretrain": (PRETRAIN_RECIPES,), "world": (WORLD_RECIPES,)}.items():
        assert {f"{room}.{name}" for table in tables for name in table} <= set(RECIPES)
    program = (
        "import sys; from forethought.app.recipes import recipes_verb; listed = recipes_verb(['--json']); "
        "sys.exit(1 if 'torch' in sys.modules or not all(listed.values()) or 'world.lewm' not in listed else 0)"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode == 0
