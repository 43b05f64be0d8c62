"""ModelSpec: the traits of a model family that code may branch on. A leaf: no torch.

Code branches on traits, never on a model's name. A pair of model and decoding that a spec does not list is refused.
"""

from dataclasses import dataclass
from typing import Literal

from engine.request import EditSetting

ContextAttention = Literal["causal", "block_causal", "bidirectional"]
BlockStart = Literal["anchor", "mask", "tail", "noise"]
EvenSchedule = Literal["remaining", "block"]

NO_MASK = -1
"""The mask of models that have none."""


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """How a canvas of random tokens is refined: every position may change in every step."""

    steps: int
    """Most denoising steps of a canvas, where a request names no other number."""
    first_temperature: float
    """Of n steps, step i divides logits by last + (first - last) * (n - i) / n."""
    last_temperature: float
    entropy_bound: float
    """A step keeps what it draws at the positions of least entropy (in nats), as long as the entropies of those before
    a position come to no more than this. All other positions become random tokens."""
    stable_steps: int
    """A canvas is done once the likeliest tokens have not changed for so many steps ..."""
    confident_below: float
    """... and the mean entropy of its positions is less than this."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Frozen traits of one loaded model."""

    family: str
    mask_token_id: int
    """NO_MASK: there is none."""
    pad_token_id: int | None
    bos_token_id: int | None
    end_token_ids: tuple[int, ...]
    block_length: int
    """The model's own decoding block length, in tokens. 0, where the whole text is seen: the answer is one block."""
    context_attention: ContextAttention = "causal"
    """How committed context is encoded. `causal`: its KV is the same whatever mode produced it. `block_causal`: a token
    sees to the end of its own block; blocks are counted from position 0. `bidirectional`: it sees the whole text."""
    block_start: BlockStart = "anchor"
    """Beginning of a fresh block: a token that a causal pass has chosen (`anchor`), a mask like the others (`mask`),
    whatever settled tokens the block's boundaries leave in it, which may be none (`tail`), or a random token like the
    others (`noise`)."""
    anchors_blocks: bool = False
    """`tail`: the last logit of a block that is encoded whole chooses the first token of the next block."""
    ragged_end: bool = False
    """`tail`: the last block ends with the answer. Otherwise every block is whole, also beyond `max_tokens`."""
    sub_block: int | None = None
    """A block's masks are unmasked in groups of so many positions, from left to right. None: all at once."""
    logit_shift: bool = False
    """In denoising too, the logits of position p choose the token at p + 1. Otherwise those of p choose its own."""
    has_causal_head: bool = True
    """Causal passes predict the next token: decoding `ar` and verification are possible."""
    drafts_causally: bool = False
    """Masks see what is before them alone, and their logits choose the token after them, like those of any token. They
    draft behind the tokens that a pass verifies; no block is refined."""
    can_infill: bool = True
    """Was trained to denoise with text to the right of the canvas visible."""
    remaskings: tuple[str, ...] = ("low_confidence",)
    """Values of a request's `remasking` that the family's own loop offers, its default first."""
    default_threshold: float | None = 0.9
    """Confidence from which the family's own loop unmasks a position. None: it keeps to an even schedule."""
    edit_settings: tuple[EditSetting, ...] = ()
    """The family's loop may replace unmasked tokens until their block settles, by one of these, the default first.
    Empty: what is unmasked stays."""
    strict_threshold: bool = False
    """A position is unmasked above the threshold. Otherwise at the threshold, too."""
    even_schedule: EvenSchedule = "remaining"
    """How a block keeps to its `max_denoising_steps` s. `remaining`: each step unmasks its share of the masks that are
    left. `block`: step i of a block of B unmasks B // s positions at least, and one more if i < B % s."""
    refinement: Refinement | None = None
    """Blocks are canvases of random tokens, refined so. None: blocks are of masks."""

    @property
    def fixed_block_length(self) -> bool:
        """Blocks have the length that the model was trained with."""
        return self.context_attention == "block_causal" or self.refinement is not None

    @property
    def overhang(self) -> int:
        """Positions that the last block of the longest text may reach beyond it."""
        return 0 if self.refinement is None else self.block_length - 1

    @property
    def sees_whole_text(self) -> bool:
        """Every pass runs prompt and answer as a whole, and nothing is cached."""
        return self.context_attention == "bidirectional"

    @property
    def context_block(self) -> int:
        """Length of the blocks that context is encoded by; 1 where it is not."""
        return self.block_length if self.context_attention == "block_causal" else 1

    @property
    def limits_steps(self) -> bool:
        """A request may ask for fewer denoising steps a block than the block has tokens."""
        return self.sub_block is None

    @property
    def decodings(self) -> tuple[str, ...]:
        """Values of a request's `decoding` field that this model supports, best exact mode last."""
        if not self.has_causal_head:
            return ("diffusion",)
        if self.drafts_causally:
            return ("ar", "speculative", "auto")
        return ("ar", "diffusion", "speculative", "auto")

    @property
    def default_decoding(self) -> str:
        """The best exact mode: `auto` where the model can verify its own drafts, else `diffusion`."""
        return self.decodings[-1]

    @property
    def banned_token_ids(self) -> tuple[int, ...]:
        """Never generated: the mask, and the padding token unless it also ends a text."""
        ids = [] if self.mask_token_id == NO_MASK else [self.mask_token_id]
        if self.pad_token_id is not None and self.pad_token_id not in (*self.end_token_ids, self.mask_token_id):
            ids.append(self.pad_token_id)
        return tuple(ids)
