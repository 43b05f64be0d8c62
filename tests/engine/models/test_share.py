"""A rank's share of a checkpoint: the right part of every tensor, nothing else of the files read, or a clear refusal.

If one fails, a divided model multiplies with other rows than its own, or needs the memory of the whole model to load.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.errors import ModelLoadError
from engine.models import weights
from engine.models.loader import LoadedModel, load_model
from engine.ranks.group import RankGroup
from tests.engine.models.quantized.formats import FORMATS, Format, gptq_config, write_quantized
from tests.engine.models.quantized.writers import gptq
from tests.reference.bidirectional.checkpoints import llada_config, write_whole_checkpoint
from tests.reference.block_checkpoints import write_block_checkpoint
from tests.reference.checkpoints import write_checkpoint

CPU = torch.device("cpu")


class Silent(RankGroup):
    """A rank that is asked for its share, and for nothing else."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("a pass was run")

    spread = gather = least = total = sum  # type: ignore[assignment]


def shares(directory: Path, size: int, **options: Any) -> list[LoadedModel]:
    return [load_model(directory, device=CPU, group=Silent(rank, size), **options) for rank in range(size)]


def write(root: Path, name: str) -> Path:
    if name == "nemotron":
        return write_checkpoint(root / name, lora_rank=4, shards=3)
    if name == "tied":
        return write_checkpoint(root / name, tie_word_embeddings=True)
    if name == "llada":
        return write_whole_checkpoint(root / name, llada_config(n_heads=4, n_kv_heads=4), logit_scale=3.0)
    return write_block_checkpoint(root / name, name)


NAMES = ("nemotron", "tied", "llada", "sdar", "fast_dllm_v2", "sdar_moe", "llada2")


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", NAMES)
def test_the_shares_are_the_model(tmp_path: Path, name: str, size: int) -> None:
    """Every element is on the rank where it belongs, once; KV heads fewer than ranks, norms and routers on several."""
    directory = write(tmp_path, name)
    whole = load_model(directory, device=CPU)
    parts = shares(directory, size)
    for expected, found in (
        (whole.decoder.targets(), [part.decoder.targets() for part in parts]),
        (whole.decoder.adapter_targets(), [part.decoder.adapter_targets() for part in parts]),
    ):
        for key, target in expected.items():
            values = target.values()
            assert {own[key].shape for own in found} == {target.shape}
            pieces = [own[key].piece for own in found]
            held = torch.zeros(target.shape, dtype=torch.int64)
            for own, piece in zip(found, pieces, strict=True):
                if "experts." in key and "shared" not in key and piece:  # another rank's
                    continue
                assert torch.equal(own[key].values(), values[piece] if piece else values), key
                held[piece] += 1
            shared = "norm" in key or "mlp.gate." in key or "lora_B" in key
            heads = whole.config.num_kv_heads
            copies = size if shared else size // heads if size > heads and ("k_proj" in key or "v_proj" in key) else 1
            assert torch.equal(held, torch.full_like(held, copies)), key
    assert {part.decoder.num_parameters for part in parts} == {whole.decoder.num_parameters}
    assert max(part.decoder.num_bytes for part in parts) < whole.decoder.num_bytes


class Recording:
    """An open file that counts the elements read from it."""

    def __init__(self, file: Any, counts: list[int]) -> None:
        self._file, self._counts = file, counts

    def __enter__(self) -> Recording:
        self._file.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        self._file.__exit__(*details)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def get_tensor(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._file.get_tensor(name)
        self._counts.append(tensor.numel())
        return tensor

    def get_slice(self, name: str) -> Any:
        part, counts = self._file.get_slice(name), self._counts

        class Part:
            get_shape, get_dtype = staticmethod(part.get_shape), staticmethod(part.get_dtype)

            def __getitem__(self, index: Any) -> torch.Tensor:
                tensor: torch.Tensor = part[index]
                counts.append(tensor.numel())
                return tensor

        return Part()


@pytest.mark.parametrize("name", ["nemotron", "sdar_moe", "llada2"])
def test_a_rank_reads_its_own_part_of_the_files(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading would take as long, and as much memory, on each of eight ranks as on one."""
    directory = write(tmp_path, name)
    opened: Callable[[Path], Any] = weights._open
    counts: list[int] = []
    monkeypatch.setattr(weights, "_open", lambda path: Recording(opened(path), counts))
    for rank in range(4):
        part = load_model(directory, device=CPU, group=Silent(rank, 4))
        held = {**part.decoder.targets(), **part.decoder.adapter_targets()}
        assert sum(counts) == sum(target.values().numel() for target in held.values())
        counts.clear()


def test_random_weights_are_those_of_one_rank(tmp_path: Path) -> None:
    """`--load-format dummy` would measure another model on several ranks."""
    directory = write(tmp_path, "llada2")
    whole = load_model(directory, device=CPU, load_format="dummy").decoder.targets()
    for part in shares(directory, 2, load_format="dummy"):
        for key, target in part.decoder.targets().items():
            if target.values().numel():
                assert torch.equal(target.values(), whole[key].values()[target.piece or ...]), key


@pytest.mark.parametrize(
    ("overrides", "size", "words"),
    [
        ({}, 3, ["3", "4 query heads"]),
        ({"vocab_size": 98}, 4, ["4", "98 tokens"]),
        ({"intermediate_size": 50}, 4, ["4", "50", "inner size"]),
        ({"num_attention_heads": 6, "num_key_value_heads": 3}, 2, ["2", "3 KV heads"]),
    ],
)
def test_a_number_of_ranks_that_does_not_divide_the_model_is_refused(
    tmp_path: Path, overrides: dict[str, Any], size: int, words: list[str]
) -> None:
    directory = write_checkpoint(tmp_path, **overrides)
    with pytest.raises(ModelLoadError) as caught:
        shares(directory, size)
    message = str(caught.value)
    assert "\n" not in message
    assert "tensor_parallel_size" in message
    for word in words:
        assert word in message


def test_experts_are_dealt_out_evenly_or_not_at_all(tmp_path: Path) -> None:
    directory = write_block_checkpoint(tmp_path, "sdar_moe", num_experts=6, num_experts_per_tok=2)
    with pytest.raises(ModelLoadError, match=r"tensor_parallel_size 4 does not divide the model's 6 experts"):
        shares(directory, 4)


@pytest.mark.parametrize("quantization", ["int8", "int8-weights"])
def test_what_would_round_otherwise_on_several_ranks_is_refused(tmp_path: Path, quantization: str) -> None:
    """Answers would depend on the number of ranks."""
    directory = write_checkpoint(tmp_path, hidden_size=64, intermediate_size=128)
    with pytest.raises(ModelLoadError, match=f"{quantization} cannot be divided among ranks"):
        shares(directory, 2, quantization=quantization)


def test_groups_of_four_bits_are_rounded_as_on_one_rank(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path, hidden_size=64, intermediate_size=128)
    whole = load_model(directory, device=CPU, quantization="int4-weights").decoder.targets()
    for part in shares(directory, 2, quantization="int4-weights"):
        for key, target in part.decoder.targets().items():
            assert torch.equal(target.values(), whole[key].values()[target.piece or ...]), key


def test_groups_that_ranks_would_cut_are_refused(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path, hidden_size=64, intermediate_size=96)
    with pytest.raises(ModelLoadError, match="groups of 32 do not divide 48 inputs"):
        shares(directory, 2, quantization="int4-weights")


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_published_quantized_checkpoints_are_divided(tmp_path: Path, name: str) -> None:
    """The numbers of a rank would be others than those of the checkpoint. Groups that are cut are expanded first."""
    write_quantized(tmp_path, FORMATS[name])
    options: dict[str, Any] = {"quantization": "none", "dtype": torch.float32}
    whole = load_model(tmp_path, device=CPU, **options).decoder.targets()
    for part in shares(tmp_path, 2, **options):
        for key, target in part.decoder.targets().items():
            assert torch.equal(target.values(), whole[key].values()[target.piece or ...]), key


@pytest.mark.parametrize(
    ("form", "storage"),
    [
        (Format(lambda m: gptq(m, group=32), gptq_config(group_size=32)), "int4-weights"),
        (FORMATS["ct-int8-packed"], "int8-weights"),
        (FORMATS["ct-int8"], "dense"),
    ],
)
def test_what_can_be_divided_as_it_is_stored_stays_so(tmp_path: Path, form: Format, storage: str) -> None:
    """A quantized model would take the memory of a plain one. (int8 rounds whole rows of activations: expanded.)"""
    write_quantized(tmp_path, form, hidden_size=128, intermediate_size=256, head_dim=32)
    whole = load_model(tmp_path, device=CPU, dtype=torch.float32, quantization="none").decoder.targets()
    for part in shares(tmp_path, 2, dtype=torch.float32):
        assert part.decoder.storage.layers == storage
        for key, target in part.decoder.targets().items():
            values = whole[key].values()[target.piece or ...]
            torch.testing.assert_close(target.values(), values, atol=0.01 * float(values.abs().max()), rtol=0)
