"""Storages of weights beside the dense one. If one fails, a model is multiplied wrongly, or depends on its company."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from engine.errors import ModelLoadError
from engine.models.linear import int8, packed
from engine.models.linear.base import Linear
from engine.models.linear.dense import DenseLinear
from engine.models.linear.fp8 import Fp8Linear
from engine.models.linear.gathered import GatheredLinear
from engine.models.linear.int8 import NARROW, WIDE, FbgemmProduct, OnednnProduct
from engine.models.linear.quantized_weight import QuantizedWeight, by_channel, by_group
from engine.models.linear.storages import LINEARS, Storage, check_quantization

CPU, META = torch.device("cpu"), torch.device("meta")
PARTS, INPUTS = {"q": 96, "k": 48, "v": 48}, 128

ERRORS = {
    "dense": 1e-6, "packed": 1e-6, "int8": 0.02, "int8-weights": 0.015, "int4-weights": 0.11, "int4-weights-64": 0.13,
    "int4-weights-128": 0.15, "fp8": 0.05,
}  # fmt: skip
"""Most that the product may differ from that of the float weights, as a share of its norm, by format; Gaussian weights,
the worst there are."""
STORAGES = tuple(ERRORS)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def rows_of(parts: dict[str, int] = PARTS, inputs: int = INPUTS, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {part: torch.randn(outputs, inputs, generator=generator) for part, outputs in parts.items()}


def linear_of(
    storage: str, weights: dict[str, torch.Tensor], dtype: torch.dtype = torch.float32, bias: bool = False
) -> Linear:
    parts = {part: len(rows) for part, rows in weights.items()}
    linear = LINEARS[storage](parts, next(iter(weights.values())).shape[1], dtype, CPU, bias)
    for part, rows in weights.items():
        linear.load(part, rows)
    for name, target in linear.targets().items():
        if name.endswith(".bias"):
            target.load(torch.arange(target.shape[0]) / 10)
    return linear


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Within a share of the row's largest element."""
    assert ((found - expected).abs() <= tolerance * expected.abs().amax(dim=1, keepdim=True)).all()


def random_rows(count: int, inputs: int = INPUTS, seed: int = 9) -> torch.Tensor:
    """Of very different sizes: a scale that rows shared would show."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, inputs, generator=generator) * torch.logspace(-3, 3, count)[:, None]


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_product_is_that_of_the_weights_within_the_formats_error(storage: str, dtype: torch.dtype) -> None:
    weights, x = rows_of(), random_rows(9).to(dtype)
    linear = linear_of(storage, weights, dtype)
    expected = x.float() @ torch.cat(list(weights.values())).T
    error = (linear(x).float() - expected).norm(dim=1) / expected.norm(dim=1)
    assert linear(x).dtype == dtype
    assert error.max() < ERRORS[storage] + (0.01 if dtype == torch.bfloat16 else 0)


@pytest.mark.parametrize("storage", STORAGES)
def test_the_values_shown_are_those_multiplied(storage: str) -> None:
    """What is compared with a reference would be another model."""
    linear, x = linear_of(storage, rows_of()), random_rows(5)
    shown = torch.cat([target.values() for target in linear.targets().values()])
    rounding = ERRORS[storage] if storage in ("int8", "fp8") else 0.006  # activations are rounded, too
    product = x @ shown.T
    assert ((linear(x) - product).norm(dim=1) / product.norm(dim=1)).max() < rounding
    stored = torch.cat(list(rows_of().values()))
    assert (shown - stored).norm() / stored.norm() < ERRORS[storage]


@pytest.mark.parametrize("storage", STORAGES)
def test_bias_and_residual_are_added(storage: str) -> None:
    weights, x = rows_of(), random_rows(3)
    linear = linear_of(storage, weights)
    biased = linear_of(storage, weights, bias=True)
    offsets = torch.cat([torch.arange(len(rows)) / 10 for rows in weights.values()])
    close(biased(x), linear(x) + offsets)
    total = torch.randn(3, 192)
    expected = total + linear(x)
    linear.add_to(total, x)
    close(total, expected)


@pytest.mark.parametrize("storage", [storage for storage in STORAGES if storage != "dense"])
def test_a_part_that_comes_again_replaces_its_rows_alone(storage: str) -> None:
    linear, x = linear_of(storage, rows_of()), random_rows(4)
    before = linear(x)
    linear.load("k", rows_of(seed=5)["k"])
    after, fresh = linear(x), linear_of(storage, rows_of() | {"k": rows_of(seed=5)["k"]})(x)
    close(after[:, 96:144], fresh[:, 96:144], 0.02)
    assert not torch.allclose(after[:, 96:144], before[:, 96:144], rtol=0.1)
    for columns in (slice(0, 96), slice(144, 192)):
        close(after[:, columns], before[:, columns], 0.02)


@pytest.mark.parametrize("storage", ["int8", "fp8", "int8-weights", "int4-weights"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_its_neighbours(storage: str, dtype: torch.dtype) -> None:
    """An answer would change with the load, and a verification would not be what `ar` computes."""
    linear, x = linear_of(storage, rows_of(), dtype), random_rows(40).to(dtype)
    together = linear(x)
    for rows in (1, 2, 7, 33):
        apart = torch.cat([linear(piece) for piece in x.split(rows)])
        if storage == "int8":
            assert torch.equal(apart, together), rows
        else:  # float sums, whose order differs between row counts
            torch.testing.assert_close(apart, together, rtol=0.02, atol=1e-5)


def test_a_row_that_is_not_finite_harms_no_other_and_shows() -> None:
    """One request's NaN would be everybody's, or nobody's."""
    x = random_rows(6)
    linear = linear_of("int8", rows_of())
    clean = linear(x)
    x[2, 5] = float("nan")
    x[4, 0] = float("inf")
    y = linear(x)
    assert torch.equal(y[[0, 1, 3, 5]], clean[[0, 1, 3, 5]])
    assert not torch.isfinite(y[2]).any()
    assert not torch.isfinite(y[4]).any()
    assert not linear(torch.zeros(2, INPUTS)).any()


@pytest.mark.parametrize("make", [FbgemmProduct, OnednnProduct])
@pytest.mark.parametrize("levels", [WIDE, NARROW])
def test_integer_products_are_those_of_integers(make: Callable[..., int8.IntegerProduct], levels: int) -> None:
    """Tried as at start-up; a processor that saturates with 8 bits must be exact with 7."""
    exact = int8.is_exact(make, levels)
    assert exact or levels == WIDE


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have no such sums")
def test_a_saturating_product_is_found_out() -> None:
    """On a processor without the instructions for it oneDNN's sums saturate silently: answers would be noise."""
    code = (
        "from engine.models.linear.int8 import *; import torch; torch.set_num_threads(1)\n"
        "print(is_exact(OnednnProduct, WIDE), is_exact(OnednnProduct, NARROW))"
    )
    found = {}
    for isa in ("AVX2", "DEFAULT"):
        environment = {"ONEDNN_MAX_CPU_ISA": isa, "PYTHONPATH": ".", "PATH": ""}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        found[isa] = done.stdout.split()
    assert found["AVX2"] == ["False", "True"]
    assert found["DEFAULT"][1] == "True"


def test_the_probe_finds_products_that_are_wrong() -> None:
    """It would wave through whatever a processor does."""

    class Saturating(OnednnProduct):
        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return super().__call__(x).clamp(max=63.0 * 127 * 200)

    class Absent(OnednnProduct):
        def __init__(self, *args: object) -> None:
            raise AttributeError("no such operation")

    assert int8.is_exact(OnednnProduct, NARROW)
    assert not int8.is_exact(Saturating, NARROW)
    assert not int8.is_exact(Absent, NARROW)


def test_packed_products_are_tried_before_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Private operations may change with a version of torch: a model would be multiplied wrongly."""
    assert not packed.is_exact(torch.float16)
    assert not packed.is_exact(torch.float64)
    packed.is_exact.cache_clear()
    assert packed.is_exact(torch.float32)
    packed.is_exact.cache_clear()
    monkeypatch.setattr(packed, "multiply_packed", lambda x, weight: x @ weight.to_dense().T * 1.001)
    assert not packed.is_exact(torch.float32)
    packed.is_exact.cache_clear()


@pytest.mark.parametrize(
    ("storage", "weight"),
    [
        ("int8", by_channel(torch.randn(48, INPUTS))),
        ("int8-weights", by_channel(torch.randn(48, INPUTS))),
        ("int4-weights", by_group(torch.randn(48, INPUTS), 32)),
        ("int4-weights", by_group(torch.randn(48, INPUTS), 64)),
        ("int4-weights", by_group(torch.randn(48, INPUTS), 128)),
        ("int4-weights-128", by_group(torch.randn(48, INPUTS), 128)),
    ],
)
def test_quantized_weights_are_stored_as_they_are(storage: str, weight: QuantizedWeight) -> None:
    """A checkpoint that was quantized with care would be rounded once more."""
    linear = LINEARS[storage]({"q": 48}, INPUTS, torch.float32, CPU, False)
    assert isinstance(linear, GatheredLinear)
    kept = linear.keep(weight)
    assert kept is not None
    assert torch.equal(kept[0], weight.values)
    linear.targets()["q.weight"].load_quantized(weight)
    wanted = weight.dequantize()
    torch.testing.assert_close(linear.values("q"), wanted, rtol=0.01, atol=0.01 * float(wanted.abs().max()))


@pytest.mark.parametrize("storage", STORAGES)
def test_quantized_weights_of_another_kind_are_expanded(storage: str) -> None:
    """Zero points that a storage cannot hold would be dropped."""
    weight = by_group(torch.randn(48, INPUTS), 16)
    linear = LINEARS[storage]({"q": 48}, INPUTS, torch.float32, CPU, False)
    linear.targets()["q.weight"].load_quantized(weight)
    shown, wanted = linear.targets()["q.weight"].values(), weight.dequantize()
    assert (shown - wanted).norm() / wanted.norm() < ERRORS[storage]


def test_float8_weights_are_stored_as_they_are() -> None:
    linear = Fp8Linear({"q": 48}, INPUTS, torch.bfloat16, CPU)
    weight = QuantizedWeight(torch.randn(48, INPUTS).to(torch.float8_e4m3fn), torch.rand(48, 1) + 0.5)
    linear.targets()["q.weight"].load_quantized(weight)
    torch.testing.assert_close(linear.values("q").float(), weight.dequantize(), rtol=0.01, atol=0.0)


@pytest.mark.parametrize("storage", ["packed", "int8", "int8-weights", "int4-weights", "fp8"])
def test_bytes_are_known_before_anything_is_loaded(storage: str) -> None:
    """`bench light` counts models that nobody has the memory for."""
    empty = LINEARS[storage](PARTS, INPUTS, torch.bfloat16, META, False)
    each = {"packed": 2, "int8": 1 + 4 / 128, "int8-weights": 1 + 2 / 128, "int4-weights": 5 / 8, "fp8": 1 + 4 / 128}
    assert empty.num_bytes == 192 * INPUTS * each[storage]
    assert LINEARS[storage](PARTS, INPUTS, torch.bfloat16, CPU, True).num_bytes == empty.num_bytes + 192 * 2
    assert empty.operations == 2 * 192 * INPUTS


@pytest.mark.parametrize(("outputs", "inputs"), [(7, 96), (33, 32), (96, 64), (1, 48)])
@pytest.mark.parametrize("storage", ["packed", "int8", "int8-weights", "int4-weights"])
def test_odd_shapes_are_multiplied_or_refused(storage: str, outputs: int, inputs: int) -> None:
    """torch's products read beyond a matrix that does not fit their tiles."""
    weights = rows_of({"q": outputs}, inputs)
    if storage == "int4-weights" and inputs % 32:
        with pytest.raises(ValueError, match="groups of 32 do not divide 48 inputs"):
            linear_of(storage, weights)
        return
    x = random_rows(3, inputs)
    expected = x @ weights["q"].T
    error = (linear_of(storage, weights)(x) - expected).norm(dim=1) / expected.norm(dim=1).clamp(min=1e-3)
    assert error.max() < (0.5 if outputs == 1 else 2 * ERRORS[storage])


def test_shapes_that_a_product_cannot_take_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 16, not 40"):
        LINEARS["int8-weights"]({"q": 8}, 40, torch.float32, CPU, False)
    with pytest.raises(ValueError, match="outputs that are a multiple of 16, not 8"):
        LINEARS["fp8"]({"q": 8}, 32, torch.float32, CPU, False)


def test_devices_are_checked_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelLoadError, match="fp8 runs on NVIDIA GPUs, not on cpu: choose int8"):
        check_quantization("fp8", CPU)
    with pytest.raises(ModelLoadError, match="int8 runs on a CPU, not on cuda:0: choose fp8"):
        check_quantization("int8", torch.device("cuda:0"))
    check_quantization("int8", CPU)
    monkeypatch.setattr("engine.models.linear.storages.choose_product", lambda: None)
    with pytest.raises(ModelLoadError, match="not exact"):
        check_quantization("int8", CPU)


def test_a_head_of_4_bits_is_one_of_8() -> None:
    assert Storage.quantized("int4-weights-64") == Storage("int4-weights-64", "int8-weights")
    assert Storage.quantized("int8") == Storage("int8", "int8")
    assert isinstance(LINEARS["dense"](PARTS, INPUTS, torch.float32, META, False), DenseLinear)
