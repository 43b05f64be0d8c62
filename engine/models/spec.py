"""ModelSpec: the traits of a model family that code may branch on. A leaf: no torch.

Code branches on traits, never on a model's name. A pair of model and decoding that a spec does not list is refused.
"""

from dataclasses import dataclass
from typing import Literal

ContextAttention = Literal["causal", "block_causal", "bidirectional"]
BlockStart = Literal["anchor", "mask"]
Remasking = Literal["low_confidence", "sequential", "random", "origin", "maskgit_plus", "topk_margin", "entropy"]


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Frozen traits of one loaded model."""

    family: str
    mask_token_id: int
    pad_token_id: int | None
    bos_token_id: int | None
    end_token_ids: tuple[int, ...]
    block_length: int
    """The model's own decoding block length, in tokens."""
    context_attention: ContextAttention = "causal"
    """How committed context is encoded. `causal`: its KV is the same whatever mode produced it."""
    block_start: BlockStart = "anchor"
    """First position of a fresh block: a token that a causal pass has chosen, or a mask like the others."""
    has_causal_head: bool = True
    """Causal passes predict the next token: decoding `ar` and verification are possible."""
    remaskings: tuple[Remasking, ...] = ("low_confidence",)
    default_threshold: float | None = 0.9
    logit_shift: bool = False
    can_infill: bool = True
    """Was trained to denoise with text to the right of the canvas visible."""

    @property
    def decodings(self) -> tuple[str, ...]:
        """Values of a request's `decoding` field that this model supports, best exact mode last."""
        if not self.has_causal_head:
            return ("diffusion",)
        return ("ar", "diffusion", "speculative", "auto")

    @property
    def default_decoding(self) -> str:
        """The best exact mode: `auto` where the model can verify its own drafts, else `diffusion`."""
        return self.decodings[-1]

    @property
    def banned_token_ids(self) -> tuple[int, ...]:
        """Never generated: the mask, and the padding token unless it also ends a text."""
        ids = [self.mask_token_id]
        if self.pad_token_id is not None and self.pad_token_id not in (*self.end_token_ids, self.mask_token_id):
            ids.append(self.pad_token_id)
        return tuple(ids)
