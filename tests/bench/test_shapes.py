"""Random weights by family: each shape is read as what it is named after. If not, another model is measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.shapes import SHAPES, write_shape
from engine.errors import ConfigError
from engine.models.families.overrides import Overrides
from engine.models.families.registry import describe_model
from engine.models.files import ConfigFile


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_is_its_family_and_large(name: str, tmp_path: Path) -> None:
    write_shape(tmp_path, name, tokenizer=True)
    overrides = Overrides(mask_token_id=SHAPES[name].mask_token_id)
    description = describe_model(
        ConfigFile.read(tmp_path / "config.json"),
        ConfigFile.read(tmp_path / "generation_config.json", optional=True),
        overrides,
    )
    shape = description.config
    assert description.spec.family.startswith(name)
    matrices = 2 * shape.vocab_size * shape.hidden_size
    matrices += shape.num_layers * 3 * shape.hidden_size * shape.intermediate_size
    assert 70e6 < matrices < 400e6
    assert (tmp_path / "tokenizer.json").exists()


def test_an_unknown_shape_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="There is no shape 'x': give one of nemotron"):
        write_shape(tmp_path, "x")
