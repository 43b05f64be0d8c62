"""Words that the formats' own libraries packed. If one fails, reader and writer of the tests are wrong alike.

Packed by compressed-tensors 0.20.0 (`pack_to_int32`) and, for GPTQ and AWQ, by vLLM 0.32.0 (`gptq_pack`, `awq_pack`,
`pack_cols`) from NUMBERS and ZEROS, which are offset by 8 there.
"""

from __future__ import annotations

import torch

from engine.models.quantized.layouts import LAYOUTS, Parts
from engine.models.quantized.packing import centred, unpack
from engine.models.quantized.scheme import LayoutName, QuantizationScheme

NUMBERS = torch.tensor(
    [
        [2, 0, 1, -5, 0, 0, -8, -3, 5, -5, 2, 3, 1, 1, 2, -3],
        [-1, -2, -8, -4, 4, 5, -1, 6, 0, 2, -7, 2, -2, -6, -6, 7],
        [4, -7, -5, 2, -3, 0, 6, -7, 5, 2, 0, 3, 6, -1, 0, 3],
        [-7, 3, 7, -8, -3, -4, 6, -7, -3, 7, 6, -4, 4, -1, -2, -8],
        [-8, 1, -6, -4, 7, -3, 0, 0, -1, -3, 5, 6, -7, -7, -7, -3],
        [-3, -1, 2, 3, 4, -4, -5, 3, -8, 7, -8, -8, -8, -6, -6, 3],
        [-1, -8, 7, 5, -3, 6, -8, 5, -7, -4, -7, 4, -6, -6, 4, -4],
        [2, 0, 4, -8, 3, 2, -2, -8, -4, 3, -7, -3, -7, 0, 0, -1],
    ]
)
ZEROS = torch.tensor([[5, -8], [-8, 1], [-7, 7], [-1, 4], [0, -1], [3, -4], [2, -8], [-8, 4]])
PACKED = [
    [1351104906, 1520024125], [-404995993, -232349272], [512074524, -1199654739], [507842481, 108809973],
    [-2007022960, 1360129367], [-1286817163, -1306525456], [-790241529, 1277346113], [111873162, 2021740980],
]  # fmt: skip
AWQ_WORDS = [
    -1525190454, -2018113256, -890179015, 184865955, -1134796968, -1538398840, 1676085472, 186570773, 1079515101,
    -1074117213, 283188618, 1347079867, 281420265, -2106449543, -2107457142, 2064598453,
]  # fmt: skip


def read(layout: LayoutName, **tensors: list[list[int]]) -> torch.Tensor:
    """The matrix, with scales that are 1."""
    scheme = QuantizationScheme(
        method="", layout=layout, kind="int", bits=4, strategy="group", group_size=8, symmetric=False
    )
    stored = {name: torch.tensor(words, dtype=torch.int32) for name, words in tensors.items()}
    scales = {"weight_scale": torch.ones(8, 2), "weight_shape": torch.tensor([8, 16])}
    if layout != "packed":
        scales = {"scales": torch.ones(2, 8)}
    return LAYOUTS[layout].read(Parts("module", scheme, {**stored, **scales}, (8, 16))).dequantize()


EXPECTED = (NUMBERS - ZEROS.repeat_interleave(8, 1)).float()


def test_compressed_tensors_words_are_read() -> None:
    zeros = [[179859725, -1069035632]]
    assert torch.equal(read("packed", weight_packed=PACKED, weight_zero_point=zeros), EXPECTED)


def test_compressed_tensors_bytes_are_read() -> None:
    words = torch.tensor([[-80991164, -495415277], [599896743, 20247213]], dtype=torch.int32)
    assert centred(unpack(words, 8, 1), 8).tolist() == [
        [-60, -84, -84, 123, -109, 16, -8, 98],
        [39, 50, 65, -93, 45, 114, -76, -127],
    ]


def test_gptq_words_are_read() -> None:
    words = [list(column) for column in zip(*PACKED, strict=True)]
    assert torch.equal(read("gptq_v2", qweight=words, qzeros=[[179859725], [-1069035632]]), EXPECTED)


def test_awq_words_are_read() -> None:
    words = [[word] for word in AWQ_WORDS]
    assert torch.equal(read("awq", qweight=words, qzeros=[[191932445], [-993458192]]), EXPECTED)
