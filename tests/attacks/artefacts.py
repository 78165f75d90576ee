"""One good artefact of every kind that `forethought.load` opens, small and made by the library itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from forethought.control import Agent, Data, body_of, fit_part, preset, save_model
from forethought.control.models.settings import NetworkConfig
from forethought.core.config import config
from forethought.core.run import Run
from forethought.data import CorpusConfig, load_tokenizer, prepare_corpus, save_episodes
from forethought.nn import LanguageModel, TransformerConfig, save_language_model
from forethought.world import WorldConfig, WorldModel, save_world_model
from forethought.world.config import EncoderConfig, PredictorConfig
from tests.app.workshop import small_text
from tests.control.integrator import episodes, towards

SMALL_WORLD = WorldConfig(
    image_size=32,
    latent_size=16,
    projector_size=32,
    encoder=EncoderConfig(width=4),
    predictor=PredictorConfig(num_layers=1, num_heads=2, head_dim=8, intermediate_size=32),
)


@config
class Settings:
    """The config of a run that did nothing."""

    width: int = 3


def build_all(place: Path) -> dict[str, Path]:
    """Write one of each kind below a folder and return where they are, by kind."""
    at = {
        kind: place / kind
        for kind in ("control-agent", "control-model", "corpus", "episodes", "language-model", "run", "world-model")
    }
    place.mkdir()
    prepare_corpus(
        [str(small_text(place / "text.jsonl", 60))],
        at["corpus"],
        CorpusConfig(vocab_size=300, validation_share=0.15, test_share=0.15),
    )
    shape = TransformerConfig(vocab_size=300, hidden_size=16, num_layers=1, num_heads=2, max_positions=64)
    size = load_tokenizer(at["corpus"]).vocab_size
    save_language_model(LanguageModel(replace(shape, vocab_size=size), seed=0), at["language-model"], at["corpus"])
    with Run.open(at["run"], config=Settings(), recipe="r") as run:
        run.log({"step": 1})
        run.checkpoints.save(1, {"model": {"w": torch.zeros(3)}}, {"position": run.position()})
        run.write_result({"loss": 1.0})
    log = episodes(6, seed=0)
    save_episodes(log, at["episodes"])
    save_world_model(WorldModel(SMALL_WORLD, seed=0), at["world-model"])
    _control(place, log, at)
    return at


def _control(place: Path, log: object, at: dict[str, Path]) -> None:
    parts = {}
    for part in ("proposal.diffusion", "dynamics.diffusion", "value.regression"):
        settings = preset("tiny").of(part)
        shape = replace(settings.model, network=NetworkConfig(preset="tiny", hidden_size=8, num_layers=1))
        settings = replace(settings, model=shape, loop=replace(settings.loop, steps=1))
        data = Data(log, log, discount=0.85)  # pyright: ignore[reportArgumentType]
        parts[part] = fit_part(part, settings, data, body_of(data.train), place / "parts" / part)
    save_model(parts["dynamics.diffusion"], at["control-model"])
    Agent(*parts.values(), objective=towards(0.0)).save(at["control-agent"])
