"""Compiles every Triton kernel for NVIDIA GPUs, without one, and prints registers, memory and spills of each as JSON.

`python -m tools.compiled_kernels [ARCHITECTURE...]` (90: Hopper). Not in Triton's interpreter, which replaces the
compiler.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from engine.gpu import attention_kernels as attention
from engine.gpu import choice as triton_choice
from engine.gpu import choice_kernels
from engine.gpu import elementwise_kernels as elementwise
from engine.gpu.attention import HEAD_DIMS, MAX_SPLITS, TILE_SHAPES
from engine.gpu.elementwise import SILU_MUL_BLOCK


class Launch(NamedTuple):
    """One specialisation of a kernel."""

    name: str
    kernel: Any
    types: dict[str, str]
    """Type of each argument that is not in `constants`. Pointers and strides count as multiples of 16, unless the
    kernel keeps Triton from specialising on them."""
    constants: dict[str, Any]
    options: dict[str, int]


def attention_launches() -> Iterator[Launch]:
    pointers = {"layout_ptr": "*i32", "limits_ptr": "*i64", "table_ptr": "*i64", "lse_ptr": "*fp32"}
    numbers = dict.fromkeys(("num_tokens", "table_stride", "q_token_stride", "q_head_stride"), "i32") | {
        "scale": "fp32"
    }

    def launch(dtype: str, rows: int, split: bool, head_dim: int, group: int = 4, page_size: int = 16) -> Launch:
        shape = TILE_SHAPES[4 if dtype == "fp32" else 2][rows]
        return Launch(
            f"attend_tiles {dtype} {head_dim} x {rows}{' split' if split else ''} group {group} page {page_size}",
            attention.attend_tiles,
            dict.fromkeys(("q_ptr", "k_ptr", "v_ptr"), f"*{dtype}")
            | {"out_ptr": "*fp32" if split else f"*{dtype}"} | pointers | numbers,
            {
                "NUM_KV_HEADS": 8, "GROUP": group, "HEAD_DIM": head_dim, "PAGE_SIZE": page_size, "BLOCK_ROWS": rows,
                "BLOCK_KV": shape.block_kv, "SPLIT": split, "WIDEN": False,
            },
            {"num_warps": shape.num_warps, "num_stages": shape.num_stages},
        )  # fmt: skip

    for dtype, size in (("bf16", 2), ("fp32", 4)):
        for rows in TILE_SHAPES[size]:
            yield launch(dtype, rows, True, 128)
            yield launch(dtype, rows, False, 128)
        for head_dim in HEAD_DIMS[:-1]:
            yield launch(dtype, max(TILE_SHAPES[size]), True, head_dim)
    yield launch("fp16", 128, False, 128)
    yield launch("bf16", 128, False, 128, group=5, page_size=1)
    merge = {"parts_ptr": "*fp32", "lse_ptr": "*fp32", "out_ptr": "*bf16", "layout_ptr": "*i32", "num_rows": "i32"}
    yield Launch("merge_splits", attention.merge_splits, merge, {"HEAD_DIM": 128, "SPLITS": MAX_SPLITS}, {})
    stored = dict.fromkeys(("k_ptr", "v_ptr", "stored_k_ptr", "stored_v_ptr"), "*bf16")
    stored |= {"slots_ptr": "*i64", "k_token_stride": "i32", "v_token_stride": "i32"}
    yield Launch("store_kv", attention.store_kv, stored, {"TOKEN_SIZE": 1024, "BLOCK": 1024}, {})


def elementwise_launches() -> Iterator[Launch]:
    strides = dict.fromkeys(("token_stride", "head_stride", "table_stride"), "i32")
    yield Launch(
        "rotate_rows", elementwise.rotate_rows,
        dict.fromkeys(("qk_ptr", "cos_ptr", "sin_ptr", "scale_ptr"), "*bf16") | strides,
        {"NUM_HEADS": 32, "ALL_HEADS": 40, "BLOCK_HEADS": 64, "HALF": 64, "SCALED": True}, {},
    )  # fmt: skip
    yield Launch(
        "silu_mul_rows", elementwise.silu_mul_rows, {"gate_up_ptr": "*bf16", "out_ptr": "*bf16", "token_stride": "i32"},
        {"SIZE": 14336, "BLOCK": SILU_MUL_BLOCK}, {},
    )  # fmt: skip


def choice_launches() -> Iterator[Launch]:
    sizes = {"V": 131072, "BLOCK": triton_choice.MAX_BLOCK, "NUM_BANNED": 2}
    options = {"num_warps": triton_choice.NUM_WARPS}
    common = {"cuts_ptr": "*i32", "params_ptr": "*i32", "banned_ptr": "*i64", "rows_a_span": "i32"}
    written = {"token_ptr": "*i64", "logprob_ptr": "*fp32", "finite_ptr": "*i8", "positions_ptr": "*i64"}
    for dtype, shift in (("bf16", 16), ("fp16", 13), ("fp32", 0)):
        types = {"logits_ptr": f"*{dtype}"} | common
        sizes["KEY_SHIFT"] = shift
        for sampled, cut in ((False, False), (True, False), (True, True)) if dtype != "fp16" else ():
            yield Launch(
                f"choose_rows {dtype}{' sampled' * sampled}{' cut' * cut}", choice_kernels.choose_rows,
                types | written, sizes | {"SAMPLED": sampled, "CUT": cut}, options,
            )  # fmt: skip
        cut_sizes = sizes | {"ID_BITS": 18}
        yield Launch(f"find_cuts {dtype}", choice_kernels.find_cuts, types, cut_sizes, options)


def compiled(launch: Launch, architecture: int) -> dict[str, int]:
    """Registers and bytes of spilled ones by thread, bytes of shared memory by program, tensor-core instructions, and
    asynchronous copies of 16 bytes, the widest there are."""
    names, parameters = launch.kernel.arg_names, launch.kernel.params
    signature = {name: launch.types.get(name, "constexpr") for name in names}
    source = ASTSource(
        fn=launch.kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in launch.constants.items()},
        attrs={
            (i,): [["tt.divisibility", 16]]
            for i, (name, kind) in enumerate(signature.items())
            if (kind.startswith("*") and not parameters[i].do_not_specialize_on_alignment)
            or (name.endswith("stride") and kind != "constexpr" and not parameters[i].do_not_specialize)
        },
    )
    made = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=launch.options)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = {name.lower(): int(value) for name, value in re.findall(r"(REG|STACK):(\d+)", usage)}
    ptx = made.asm["ptx"]
    products = ptx.count("wgmma.mma_async") + ptx.count("mma.sync")
    copies = len(re.findall(r"cp\.async\.\w+\.shared\.global[^;]*, 0x10,", ptx))
    return found | {"shared": made.metadata.shared, "products": products, "copies": copies}


def main(architectures: list[int]) -> None:
    warnings.simplefilter("ignore")  # of Triton's own about its defaults to come
    launches = [*attention_launches(), *elementwise_launches(), *choice_launches()]
    found = {f"{a} {launch.name}": compiled(launch, a) for a in architectures for launch in launches}
    print(json.dumps(found))


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or [90])
