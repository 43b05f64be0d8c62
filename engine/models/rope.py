"""Rotary position embeddings as a table over positions, with YaRN and its relatives, and Llama-4 query scaling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from engine.errors import ModelLoadError

REQUIRED_PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "yarn": ("factor", "original_max_position_embeddings"),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    "proportional": ("partial_rotary_factor",),
}
"""The rope types whose frequencies do not depend on the text's length, and what each needs besides theta."""

OPTIONAL_PARAMETERS = ("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor", "truncate")


@dataclass(frozen=True, kw_only=True)
class QueryScaling:
    """Llama-4 style: after RoPE the query at p is scaled by 1 + beta * ln(1 + floor(p / original_max_positions))."""

    beta: float
    original_max_positions: int


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """`rope_parameters` of a published config.json."""

    theta: float
    kind: str = "default"
    """A key of REQUIRED_PARAMETERS."""
    parameters: Mapping[str, float] = field(default_factory=dict)
    query_scaling: QueryScaling | None = None
    rotary_dim: int | None = None
    """Only the first so many elements of a head are rotated. None: all."""

    def __post_init__(self) -> None:
        if self.kind not in REQUIRED_PARAMETERS:
            known = ", ".join(REQUIRED_PARAMETERS)
            raise ModelLoadError(f"Rope type {self.kind!r} is not supported. Supported: {known}.")
        missing = [name for name in REQUIRED_PARAMETERS[self.kind] if name not in self.parameters]
        if missing:
            raise ModelLoadError(f"Rope type {self.kind!r} needs {', '.join(missing)} in rope_parameters.")
        if self.rotary_dim is not None and self.kind != "default":
            raise ModelLoadError(f"Rope type {self.kind!r} with partial rotation is not supported.")

    def order(self, head_dim: int) -> torch.Tensor | None:
        """How the elements of a head of q and k are stored: by place, the published element. None: as published.

        A rotation pairs element i with i + head_dim / 2. Where only the first rotary_dim are rotated, among themselves,
        each half of these leads one half of the head: then one rotation does for every family, and the elements that
        are left have the angle 0. Scores are sums over elements of q and k in one order, whichever it is.
        """
        if self.rotary_dim is None:
            return None
        rotated, rest = torch.arange(self.rotary_dim).chunk(2), torch.arange(self.rotary_dim, head_dim).chunk(2)
        return torch.cat((rotated[0], rest[0], rotated[1], rest[1]))


class Rotation(NamedTuple):
    """The rows of the table for the T tokens of a pass."""

    cos: torch.Tensor
    """[T, 1, head_dim]"""
    sin: torch.Tensor
    """[T, 1, head_dim], the first half negated: rotated = x * cos + roll(x, head_dim / 2) * sin."""
    query_scale: torch.Tensor | None
    """[T, 1, 1]"""


class RotaryTable:
    """cos, sin and query scale of every position below `num_positions`.

    A table rather than a computation per pass: a position's rotation is then the same bits in every pass. Angles are
    float32 in every dtype, as in the published implementations the weights were trained with.
    """

    def __init__(
        self, config: RopeConfig, head_dim: int, num_positions: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        frequencies, factor = rope_frequencies(config, head_dim)
        positions = torch.arange(num_positions, device=device)
        angles = positions[:, None].float() * frequencies.to(device)  # [P, head_dim / 2]
        cos, sin = angles.cos() * factor, angles.sin() * factor
        rows = torch.stack((torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)), dim=1)
        self.table = rows.to(dtype)  # [P, 2, head_dim]
        self.query_scale: torch.Tensor | None = None
        if (scaling := config.query_scaling) is not None:
            periods = torch.floor(positions / scaling.original_max_positions)
            scale = 1 + scaling.beta * torch.log(1 + periods)
            self.query_scale = scale.to(dtype)[:, None, None]  # [P, 1, 1]

    def rows(self, positions: torch.Tensor) -> Rotation:
        """positions: [T] int64, each below `num_positions`."""
        rows = self.table.index_select(0, positions)  # [T, 2, head_dim]
        scale = None if self.query_scale is None else self.query_scale.index_select(0, positions)
        return Rotation(rows[:, :1], rows[:, 1:], scale)


def rope_frequencies(config: RopeConfig, head_dim: int) -> tuple[torch.Tensor, float]:
    """Inverse frequencies [head_dim / 2] float32 and the attention factor that multiplies cos and sin.

    Source: Su et al. 2021 (RoPE); the scaled variants are transformers' own functions, so that YaRN's many published
    conventions are theirs and not a second reading of them.
    """
    if config.kind == "proportional":  # the first angles of a whole head are kept, the others are 0
        kept = int(config.parameters["partial_rotary_factor"] * head_dim // 2)
        frequencies = torch.zeros(head_dim // 2)
        frequencies[:kept] = 1.0 / config.theta ** (torch.arange(0, 2 * kept, 2, dtype=torch.float32) / head_dim)
        return frequencies, 1.0
    if config.kind == "default":
        rotated = config.rotary_dim or head_dim
        frequencies = torch.zeros(head_dim // 2)
        exponents = torch.arange(0, rotated, 2, dtype=torch.float32) / rotated
        frequencies[: rotated // 2] = 1.0 / config.theta**exponents
        return frequencies, 1.0
    # Imported here: it costs a second, and a model with plain RoPE starts without it.
    from transformers import PreTrainedConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    known = (*REQUIRED_PARAMETERS[config.kind], *OPTIONAL_PARAMETERS)
    parameters = {name: value for name, value in config.parameters.items() if name in known}
    settings = PreTrainedConfig.from_dict(
        {
            "rope_parameters": {"rope_type": config.kind, "rope_theta": config.theta, **parameters},
            "head_dim": head_dim,
            "hidden_size": head_dim,
            "num_attention_heads": 1,
            "max_position_embeddings": int(
                parameters["factor"] * parameters.get("original_max_position_embeddings", 1)
            ),
        }
    )
    frequencies, factor = ROPE_INIT_FUNCTIONS[config.kind](settings, torch.device("cpu"))
    return frequencies, float(factor)
