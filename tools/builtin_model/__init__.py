"""The recipe of the built-in model: generated text, tokenizer, joint training, export, quality.

    python -m tools.builtin_model tokenizer        # trains the tokenizer on generated text
    python -m tools.builtin_model train            # trains the model; run again to go on where it stopped
    python -m tools.builtin_model extend MODEL     # trains an exported model further; run again to go on
    python -m tools.builtin_model export           # writes the published layout into engine/builtin
    python -m tools.builtin_model quality          # exact answers and tokens a pass, by way of decoding
    python -m tools.builtin_model calls            # tokens a pass of calls of tools, beside stories

Everything in between lies in `--work` (build/builtin_model unless told otherwise).
"""
