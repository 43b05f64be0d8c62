"""Configuration that contradicts itself, the model or the machine is refused at start-up, in one line naming the field.

If one fails, a server starts that cannot serve, or an operator searches a traceback for a number in a file.
"""

from __future__ import annotations

import re
import typing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import DraftQuantization, EngineConfig, Quantization, check_config
from engine.errors import ConfigError
from engine.models.linear.storages import FLOAT_STORAGES, LINEARS
from engine.models.loader import DTYPES
from tests.conftest import MakeEngine
from tests.engine.driving import ask, drive


def refusal(**fields: Any) -> str:
    with pytest.raises(ConfigError) as refused:
        check_config(EngineConfig(**fields))
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_the_defaults_are_valid() -> None:
    check_config(EngineConfig())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("page_size", 0), ("page_size", 24), ("page_size", -16), ("max_running", 0), ("max_batch_tokens", 0),
        ("max_block_length", 0), ("max_block_length", 1), ("max_block_length", 1025), ("max_infill_window", -1),
        ("max_model_len", 0), ("kv_cache_tokens", 0), ("kv_cache_tokens", -1), ("threads", 0),
        ("gpu_memory_utilization", 0.0), ("gpu_memory_utilization", 1.5), ("gpu_memory_utilization", float("nan")),
    ],
)  # fmt: skip
def test_a_bad_value_is_named_with_its_field(field: str, value: Any) -> None:
    message = refusal(**{field: value})
    assert field in message
    assert str(value) in message


def test_every_type_of_number_that_may_be_configured_is_one_torch_has() -> None:
    """An option's value that no table knows would silently be another type."""
    assert set(typing.get_args(typing.get_type_hints(EngineConfig)["dtype"])) == {"auto", *DTYPES}


def test_every_quantization_that_may_be_configured_is_a_storage_there_is() -> None:
    """A name would be accepted and end in a traceback."""
    names = {*typing.get_args(Quantization), *typing.get_args(DraftQuantization)} - {"auto", "none"}
    assert names == set(LINEARS) - {*FLOAT_STORAGES}
    assert set(typing.get_args(DraftQuantization)) == set(typing.get_args(Quantization)) - {"auto", "fp8"}


def test_a_draft_quantized_like_all_weights_is_refused() -> None:
    """It would take the memory of a second copy, and give nothing for it."""
    message = refusal(quantization="int8", draft_quantization="int8")
    assert "draft_quantization (int8) is how all weights are quantized: leave it out" in message
    check_config(EngineConfig(quantization="int8", draft_quantization="int4-weights"))


def test_where_an_option_was_set_is_said() -> None:
    """An operator would search files, variables and flags for a number."""
    places = {"max_batch_tokens": "--max-batch-tokens", "max_running": "LIGHTCONE_MAX_RUNNING"}
    with pytest.raises(ConfigError, match=r"at least 1365 is needed \(--max-batch-tokens\)\.$"):
        check_config(EngineConfig(max_batch_tokens=100), places)
    with pytest.raises(ConfigError, match=r"^max_running must be greater than 0, not 0 \(LIGHTCONE_MAX_RUNNING\)$"):
        check_config(EngineConfig(max_running=0), places)


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(st.integers(1, 3000), st.integers(2, 1024), st.integers(0, 2000))
def test_a_budget_too_small_for_one_step_is_refused_with_one_that_is_not(
    budget: int, block_length: int, window: int
) -> None:
    """A block or window that never fits into a pass would wait for ever; what is advised must be just enough."""
    fields: dict[str, Any] = {"max_block_length": block_length, "max_infill_window": window}
    widest = max(2 * block_length, window)
    try:
        check_config(EngineConfig(max_batch_tokens=budget, **fields))
    except ConfigError as error:
        advised = re.search(r"at least (\d+)", str(error))
        assert advised is not None
        assert int(advised[1]) > budget
        check_config(EngineConfig(max_batch_tokens=int(advised[1]), **fields))
        with pytest.raises(ConfigError):
            check_config(EngineConfig(max_batch_tokens=int(advised[1]) - 1, **fields))
    else:
        assert budget - budget // 4 >= widest


def test_the_engine_tells_what_it_was_configured_to(tiny_engine: MakeEngine) -> None:
    """The API process would check requests against limits that are not the engine's."""
    info = tiny_engine(
        max_model_len=100, kv_cache_tokens=200, page_size=8, max_block_length=4, max_infill_window=9
    ).info
    assert (info.max_model_len, info.num_pages, info.page_size) == (100, 25, 8)
    assert (info.block_length, info.max_block_length, info.max_infill_window) == (4, 4, 9)  # the model's own is 8
    assert (info.mask_token_id, info.banned_token_ids, info.end_token_ids) == (5, (5, 0), (2,))
    assert (info.dtype, info.device, info.default_decoding) == ("float64", "cpu", "auto")


def test_an_engine_that_measures_its_passes_gives_the_same_answers(tiny_engine: MakeEngine) -> None:
    """Calibration runs on the pool's own pages: what it leaves behind would end up in the first answers."""
    requests = [ask(f"r{i}", [20 + i] * 9, "auto", temperature=0.9, seed=i) for i in range(4)]
    measured = drive(tiny_engine(calibration_seconds=0.05), requests)
    assumed = drive(tiny_engine(), requests)
    assert [measured[name].outcome for name in measured] == [assumed[name].outcome for name in measured]
