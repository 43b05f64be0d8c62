"""One set of weights for all servers. If one fails, the comparison measures different models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer

from bench.peers.vocabulary import FIRST_WORD, MASK
from bench.peers.weights import Checkpoints, Shape, write_checkpoints, write_gguf
from engine.models.loader import load_model
from tests.reference.dense_attention import DenseAttention, dense_batch

SHAPE = Shape(hidden=64, layers=2, inner=96, heads=4, kv_heads=2, head_dim=32, vocabulary=512)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return write_checkpoints(tmp_path_factory.mktemp("peers"), SHAPE)


def test_both_configs_mean_the_same_model(checkpoints: Checkpoints) -> None:
    """transformers reads the one that is written for the others, this engine its own."""
    ids = [400, 310, 511, 305, 333]
    model = transformers.LlamaForCausalLM.from_pretrained(checkpoints.llama, dtype=torch.float32)
    decoder = load_model(checkpoints.lightcone, device=torch.device("cpu"), dtype=torch.float32).decoder
    batch = dense_batch([(0, 0, ids, None)])
    attention = DenseAttention(SHAPE.layers, 64)
    attention.prepare(batch)
    with torch.inference_mode():
        theirs = model(input_ids=torch.tensor([ids])).logits[0]
        ours = decoder.logits(decoder.forward(batch, attention))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_every_token_has_a_text(checkpoints: Checkpoints) -> None:
    """Servers would refuse the vocabulary, or stream nothing."""
    tokenizer = Tokenizer.from_file(str(checkpoints.llama / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == SHAPE.vocabulary
    assert tokenizer.decode([FIRST_WORD, FIRST_WORD + 7]) == f" t{FIRST_WORD} t{FIRST_WORD + 7}"
    assert tokenizer.token_to_id("<mask>") == MASK
    assert tokenizer.decode(tokenizer.encode("any tëxt").ids) == "any tëxt"


@pytest.mark.parametrize("kind", ["f32", "bf16", "q8_0"])
def test_gguf_holds_the_same_weights(checkpoints: Checkpoints, kind: str, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "model.gguf"
    write_gguf(checkpoints, SHAPE, kind, path)
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    plain = load_file(checkpoints.weights)
    assert len(found) == len(plain)
    allowed = {"f32": 0.0, "bf16": 0.0, "q8_0": 0.01}[kind]
    for theirs, ours in (
        ("output.weight", "lm_head.weight"),
        ("blk.1.ffn_down.weight", "model.layers.1.mlp.down_proj.weight"),
        ("blk.0.attn_norm.weight", "model.layers.0.input_layernorm.weight"),
    ):
        tensor = found[theirs]
        values = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
        assert float((values - plain[ours].float()).abs().max() / values.abs().max()) <= allowed
    # Row 2i and 2i + 1 of a head are rotated together there, i and i + half of it here.
    tensor = found["blk.0.attn_q.weight"]
    rows = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
    expected = plain["model.layers.0.self_attn.q_proj.weight"].float()
    for head in range(SHAPE.heads):
        start = head * SHAPE.head_dim
        for index in (0, 5, 15):
            for side in (0, 1):
                theirs_row, ours_row = rows[start + 2 * index + side], expected[start + index + 16 * side]
                assert float((theirs_row - ours_row).abs().max() / rows.abs().max()) <= allowed
