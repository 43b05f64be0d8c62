"""A layer's weights and the parts of its forward beside attention. The whole forward is held in test_decoder."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from engine.models.adapter import MODULES, DraftAdapter
from engine.models.decoder_config import DecoderConfig
from engine.models.elementwise import Elementwise
from engine.models.layer import Layer
from engine.models.rope import RopeConfig, RotaryTable

CPU = torch.device("cpu")
DTYPE = torch.float64


def config(**traits: bool) -> DecoderConfig:
    return DecoderConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_layers=1, num_heads=4, num_kv_heads=2, head_dim=16,
        rms_norm_eps=1e-5, max_positions=64, rope=RopeConfig(theta=10000.0), **traits,
    )  # fmt: skip


def layer_of(shape: DecoderConfig, adapter: DraftAdapter | None = None) -> Layer:
    layer = Layer(shape, DTYPE, CPU, adapter)
    generator = torch.Generator().manual_seed(0)
    for target in {**layer.targets(), **layer.adapter_targets()}.values():
        target.fill_normal(0.2, generator)
    return layer


def elementwise() -> Elementwise:
    return Elementwise(1e-5, DTYPE, CPU)


def test_the_mlp_adds_the_gated_product_to_the_residual() -> None:
    layer = layer_of(config())
    weights = {name: target.values() for name, target in layer.mlp.targets().items()}
    x, total = torch.randn(5, 32, dtype=DTYPE), torch.randn(5, 32, dtype=DTYPE)
    gate, up = x @ weights["gate_proj.weight"].T, x @ weights["up_proj.weight"].T
    expected = total + (F.silu(gate) * up) @ weights["down_proj.weight"].T
    layer.mlp.add_to(total, x, elementwise())
    torch.testing.assert_close(total, expected)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_queries_keys_and_values_come_from_their_own_rows(qk_norm: bool) -> None:
    layer = layer_of(config(qk_norm=qk_norm))
    weights = {name: target.values() for name, target in layer.targets().items()}
    table = RotaryTable(RopeConfig(theta=10000.0), 16, 64, DTYPE, CPU)
    rotation, work = table.rows(torch.arange(5)), elementwise()
    x = torch.randn(5, 32, dtype=DTYPE)
    q, k, v = layer.project(x, rotation, work)
    heads = {letter: (x @ weights[f"self_attn.{letter}_proj.weight"].T).view(5, -1, 16) for letter in "qkv"}
    if qk_norm:
        heads |= {letter: work.norm(heads[letter], weights[f"self_attn.{letter}_norm.weight"]) for letter in "qk"}
    rotated = work.rotate(torch.cat((heads["q"], heads["k"]), dim=1), 4, rotation)
    torch.testing.assert_close((q, k, v), (*rotated, heads["v"]))


def test_targets_follow_the_traits() -> None:
    """A family with biases or norms would load without them, and answer noise."""
    plain = set(layer_of(config()).targets())
    assert len(plain) == 9
    assert set(layer_of(config(qkv_bias=True)).targets()) - plain == {f"self_attn.{x}_proj.bias" for x in "qkv"}
    assert set(layer_of(config(qk_norm=True)).targets()) - plain == {f"self_attn.{x}_norm.weight" for x in "qk"}
    adapted = layer_of(config(), DraftAdapter(rank=4, alpha=8))
    assert set(adapted.targets()) == plain
    assert set(adapted.adapter_targets()) == {f"self_attn.o_proj.lora_{x}.weight" for x in "AB"}
    assert layer_of(config()).adapter_targets() == {}


@pytest.mark.parametrize("rotary_dim", [None, 8])
@pytest.mark.parametrize("modules", [MODULES, ("q_proj", "v_proj"), ("up_proj", "down_proj"), ("o_proj",)])
def test_an_adapter_updates_the_rows_that_draft_and_no_others(modules: tuple[str, ...], rotary_dim: int | None) -> None:
    """As if it were merged into the weights for these rows. A partial rotation keeps rows of q and k in an order of
    its own."""
    rope = RopeConfig(theta=10000.0, rotary_dim=rotary_dim)
    shape, adapter = replace(config(qk_norm=True), rope=rope), DraftAdapter(rank=3, alpha=6, modules=modules)
    adapted, merged = layer_of(shape, adapter), layer_of(shape)
    updates = {name: target.values() for name, target in adapted.adapter_targets().items()}
    assert {name.split(".")[1] for name in updates} == set(modules)
    weights = merged.targets()
    for module in modules:
        (name,) = (name for name in weights if name.endswith(f"{module}.weight"))
        up, down = (updates[name.replace("weight", f"lora_{side}.weight")] for side in "BA")
        weights[name].load(weights[name].values() + adapter.scale * up @ down)
    drafting = adapter.scale * torch.tensor([[0.0], [1.0], [1.0], [0.0], [1.0]], dtype=DTYPE)
    drafts = drafting[:, 0] > 0
    work, generator = elementwise(), torch.Generator().manual_seed(1)
    rotation = RotaryTable(rope, 16, 64, DTYPE, CPU).rows(torch.arange(5))
    x, context = (torch.randn(5, width, dtype=DTYPE, generator=generator) for width in (32, 64))
    plain = layer_of(shape)

    def parts(layer: Layer, scale: torch.Tensor | None) -> list[torch.Tensor]:
        totals = [torch.zeros(5, 32, dtype=DTYPE), torch.zeros(5, 32, dtype=DTYPE)]
        layer.add_attended(totals[0], context, scale)
        layer.add_mlp(totals[1], x, work, scale)
        return [*layer.project(x, rotation, work, scale), *totals]

    for found, as_merged, as_plain in zip(
        parts(adapted, drafting), parts(merged, None), parts(plain, None), strict=True
    ):
        torch.testing.assert_close(found[drafts], as_merged[drafts])
        torch.testing.assert_close(found[~drafts], as_plain[~drafts])


def test_every_matrix_and_norm_is_counted_once() -> None:
    layer = layer_of(config(qk_norm=True))
    elements = sum(target.values().numel() for target in layer.targets().values())
    counted = sum(matrix.num_bytes for matrix in layer.linears) + sum(norm.nbytes for norm in layer.norms)
    assert counted == elements * DTYPE.itemsize
