"""Two and four ranks answer what one does, token for token in float64, for every family and mode.

If one fails, a model that is divided among GPUs says something else than the same model on one: a head of another rank,
a part of a row left out of a sum, a token of another part of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from engine.models.adapter import MODULES
from engine.models.families.overrides import Overrides
from tests.conftest import MakeEngine, engine_maker
from tests.engine.decoding.blocks.cases import BLOCK_LENGTHS, CHECKPOINTS, ORDERS, SAME_FILES, family_of
from tests.engine.decoding.introspective.test_adapter import write_adapter
from tests.engine.decoding.whole.conftest import ORDERS as WHOLE_ORDERS
from tests.engine.driving import Visit, ask, drive
from tests.engine.ranks.crew import Crew
from tests.engine.strategies import NARROW, prompt_of
from tests.reference.bidirectional.checkpoints import (
    dream_config,
    llada_config,
    llada_moe_config,
    write_whole_checkpoint,
)
from tests.reference.block_checkpoints import write_block_checkpoint
from tests.reference.checkpoints import MASK, write_checkpoint

WHOLE: dict[str, Callable[..., dict[str, Any]]] = {
    "llada": lambda: llada_config(n_heads=4, n_kv_heads=4),
    "dream": dream_config,
    "llada_moe": lambda: llada_moe_config(num_attention_heads=4, num_key_value_heads=2),
}
NAMES = ("nemotron", "tied", "idlm", *CHECKPOINTS, *WHOLE)
LONGEST = 96


class Case(NamedTuple):
    """A checkpoint and the engine that one process runs it with."""

    name: str
    directory: Path
    make: MakeEngine
    options: Mapping[str, Any] = MappingProxyType({})
    """What the operator says of the model."""


@pytest.fixture(scope="session")
def case_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """By name, each written once."""
    root = tmp_path_factory.mktemp("divided")

    @cache
    def make(name: str) -> Case:
        directory = root / name
        if name in WHOLE:
            write_whole_checkpoint(directory, WHOLE[name](), logit_scale=3.0)
        elif name == "idlm":
            return idlm_case(directory)
        elif name in CHECKPOINTS:
            family = family_of(name)
            write_block_checkpoint(directory, SAME_FILES.get(family, family), **CHECKPOINTS[name])
            if family in SAME_FILES:
                return Case(name, directory, engine_maker(directory, "float64", family), {"model_family": family})
        else:
            write_checkpoint(directory, lora_rank=4, tie_word_embeddings=name == "tied")
        return Case(name, directory, engine_maker(directory, "float64"))

    return make


def idlm_case(directory: Path) -> Case:
    """A model that drafts with an adapter of all of its matrices."""
    write_block_checkpoint(
        directory, "sdar", seed=6, logit_scale=0.5, block_size=..., architectures=["Qwen3ForCausalLM"], mask=False
    )
    adapter = write_adapter(directory / "lora", directory, MODULES)
    said = Overrides(family="idlm", mask_token_id=MASK, draft_adapter=adapter)
    options = {"model_family": "idlm", "mask_token_id": MASK, "draft_adapter": str(adapter)}
    return Case("idlm", directory, engine_maker(directory, "float64", overrides=said), options)


def requests_for(name: str, count: int) -> list[Visit]:
    """Requests of all modes and parameters that a family has: plain ones, and such as need all of the logits."""
    if name in WHOLE:
        orders, length = WHOLE_ORDERS[name.split("_")[0]], 8
    elif name in CHECKPOINTS:
        orders, length = [order.remasking for order in ORDERS[family_of(name)].values()], BLOCK_LENGTHS[name]
    else:
        orders, length = ["low_confidence"], 8
    tri_mode = name in ("nemotron", "tied")
    modes = ("ar", "diffusion", "speculative", "auto", "infill", "speculative") if tri_mode else ("diffusion",)
    if name == "idlm":
        modes = ("speculative", "ar", "auto")
    visits = []
    for i in range(count):
        mode = modes[i % len(modes)]
        fields: dict[str, Any] = {
            "max_tokens": 10, "block_length": length, "temperature": (0.0, 0.8, 1.2)[i % 3], "seed": i,
            "remasking": orders[i % len(orders)] if mode == "diffusion" else "low_confidence",
            "ignore_eos": i % 2 == 0, "include_drafts": i % 4 == 0,
        }  # fmt: skip
        if fields["remasking"] != "low_confidence":
            fields["threshold"] = None
        extras: list[dict[str, Any]] = [{}, {}, {"top_p": 0.8}, {"repetition_penalty": 1.3}, {"logprobs": 2}, {}]
        fields |= extras[i // 2 % len(extras)]
        if tri_mode and i % 4 == 2:
            fields["logit_bias"] = NARROW
        if name == "llada2_1" and i % 2:
            fields["edit_threshold"] = 0.3
        if mode == "infill":
            fields["suffix_token_ids"] = [50, 51, 52]
        visits.append(Visit(ask(f"r{i}", prompt_of(0, 24, 1 + i), mode, **fields), 2 * (i // 4), 6 if i == 3 else None))
    return visits


def check_pools(crew: Crew) -> None:
    """Every rank has the pool of the engine that it has just run: as many pages, and the same page table."""
    pools = [state.pool for state in crew.end()]
    assert len(pools) == crew.size
    assert len(set(pools)) == 1, "a rank has lost track of the pages"
    assert pools[0][-1], "what is not finite stays in the cache"


@pytest.mark.parametrize("name", NAMES)
def test_the_answers_are_those_of_one_rank(crew: Crew, case_of: Callable[[str], Case], name: str) -> None:
    case = case_of(name)
    limits = {"max_model_len": LONGEST, "kv_cache_tokens": 384, "max_running": 5}
    visits = requests_for(name, 12 if crew.size == 2 else 6)
    wanted = drive(case.make(**limits, **case.options), visits)
    given = drive(crew.make(case.directory, **limits, **case.options), visits)
    for visit in visits:
        request = visit.request
        assert given[request.request_id].outcome == wanted[request.request_id].outcome, request
        assert [draft.token_ids for draft in given[request.request_id].drafts] == [
            draft.token_ids for draft in wanted[request.request_id].drafts
        ]
    assert not all(answer.finished.reason == "error" for answer in given.values())
    check_pools(crew)
