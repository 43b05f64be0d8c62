"""Writes a trained network in the published Nemotron-Labs-Diffusion layout, with held-out prompts to measure it by."""

from __future__ import annotations

import hashlib
import json
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from loadtest.questions.categories import CATEGORIES, questions
from loadtest.questions.question import Question
from tools.builtin_model.held_out import held_out
from tools.builtin_model.network import Network, Shape
from tools.builtin_model.tokens import SPECIAL

MAX_POSITIONS = 1024
"""Four times what training saw: RoPE carries on, quality fades."""
BLOCK_LENGTH = 32

CHAT_TEMPLATE = (
    "{{- '<|bos|>' -}}"
    # Training saw one system message, in front. Agents send several, anywhere.
    "{%- set system = namespace(text='', count=0) -%}"
    "{%- for message in messages if message['role'] == 'system' -%}"
    "{%- set system.text = system.text + ('\\n' if system.count else '') + message['content'] -%}"
    "{%- set system.count = system.count + 1 -%}"
    "{%- endfor -%}"
    # Tools are a line each: their schemas as JSON would fill the context that the model was trained on.
    "{%- if system.count or tools -%}{{- '<|system|>' + system.text -}}{%- endif -%}"
    "{%- if tools -%}"
    "{{- ('\\n' if system.count else '') + 'Tools:' -}}"
    "{%- for tool in tools -%}"
    "{%- set function = tool['function'] -%}"
    "{%- set parameters = function['parameters'] or {} -%}"
    "{{- '\\n' + function['name'] + '(' -}}"
    "{%- for name, kind in (parameters['properties'] or {}).items() -%}"
    "{{- (', ' if loop.index > 1 else '') + name + ('' if name in (parameters['required'] or []) else '?') -}}"
    "{%- if kind is mapping and kind['enum'] -%}{{- ': ' + kind['enum'] | map('tojson') | join('|') -}}"
    "{%- elif kind is mapping and kind['type'] is string -%}{{- ': ' + kind['type'] -}}{%- endif -%}"
    "{%- endfor -%}"
    "{{- ')' -}}"
    "{%- if function['description'] -%}{{- ' ' + function['description'] -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}"
    "{{- '<|user|>' + message['content'] -}}"
    "{%- elif message['role'] == 'assistant' -%}"
    "{{- '<|assistant|>' + (message['content'] or '') -}}"
    "{%- for call in message['tool_calls'] or [] -%}"
    "{%- set arguments = call['function']['arguments'] -%}"
    "{{- '<tool_call>{\"name\": ' + call['function']['name'] | tojson + ', \"arguments\": ' -}}"
    "{{- (arguments if arguments is string else arguments | tojson) + '}</tool_call>' -}}"
    "{%- endfor -%}"
    "{{- '<|eos|>' -}}"
    "{%- elif message['role'] == 'tool' -%}"
    "{%- if loop.first or messages[loop.index0 - 1]['role'] != 'tool' -%}{{- '<|user|>' -}}{%- endif -%}"
    "{{- '<tool_response>' + message['content'] + '</tool_response>' -}}"
    "{%- elif message['role'] != 'system' -%}"
    "{{- raise_exception('Roles are system, user, assistant and tool, not ' + message['role'] + '.') -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def export(work: Path, target: Path) -> str:
    """Writes the model of `work` (checkpoint.pt, tokenizer.json) to `target`; returns the SHA-256 of the weights.

    The same checkpoint always gives the same bytes. Raises FileNotFoundError where `work` lacks one of the two.
    """
    saved: dict[str, Any] = torch.load(work / "checkpoint.pt", weights_only=True)
    network = Network(Shape(**saved["shape"]))
    network.load_state_dict(saved["network"])
    target.mkdir(parents=True, exist_ok=True)
    write_model(network, target)
    (target / "tokenizer.json").write_bytes((work / "tokenizer.json").read_bytes())
    lines = [json.dumps(line, ensure_ascii=False) for line in held_out_prompts(6, stories=True)]
    (target / "prompts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return weights_digest(target)


def weights_digest(directory: Path) -> str:
    """SHA-256 of an exported model's weights, in hexadecimal."""
    return hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()


def write_model(network: Network, target: Path) -> None:
    """config.json, generation_config.json, tokenizer_config.json and model.safetensors in float16, head written out."""
    tensors = {f"encoder.{name}": tensor.to(torch.float16) for name, tensor in network.state_dict().items()}
    tensors["diffusion_head.weight"] = tensors["encoder.embed_tokens.weight"].clone()
    save_file(
        {name: tensors[name] for name in sorted(tensors)}, target / "model.safetensors", metadata={"format": "pt"}
    )
    (target / "model.safetensors").chmod(0o644)  # safetensors makes its files private to the user
    special = {name: token for token, name in enumerate(SPECIAL)}
    ids = {f"{name}_token_id": special[f"<|{name}|>"] for name in ("bos", "eos", "pad")}
    _write_json(target / "config.json", _config(network.shape, ids | {"mask_token_id": special["<|mask|>"]}))
    _write_json(target / "generation_config.json", ids)
    names = {f"{name}_token": f"<|{name}|>" for name in ("bos", "eos", "pad", "mask")}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": MAX_POSITIONS,
        "clean_up_tokenization_spaces": False, "add_bos_token": True, **names, "chat_template": CHAT_TEMPLATE,
    }  # fmt: skip
    _write_json(target / "tokenizer_config.json", settings)


def _config(shape: Shape, ids: dict[str, int]) -> dict[str, Any]:
    return {
        "architectures": ["NemotronLabsDiffusionModel"],
        "model_type": "nemotron_labs_diffusion",
        "dtype": "float16",
        "vocab_size": shape.vocab_size,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": MAX_POSITIONS,
        "rms_norm_eps": shape.rms_norm_eps,
        "block_size": BLOCK_LENGTH,
        **ids,
    }


def held_out_questions(each: int, category: str, seed: int = 2) -> list[Question]:
    """Up to `each` different questions of a category that training never saw; fewer where there are no more."""
    found: dict[str, Question] = {}
    for question in islice(questions(seed, [category]), 400 * each):
        if held_out(question.text) and len(found) < each:
            found.setdefault(question.text, question)
    return list(found.values())


def held_out_prompts(each: int, stories: bool = False) -> list[dict[str, Any]]:
    """`each` held-out prompts of every category, the categories in turn, as `lightcone bench --prompts` reads them."""
    columns = [held_out_questions(each, name) for name in CATEGORIES if stories or name != "story"]
    return [
        {
            "prompt": f"<|user|>{question.text}<|assistant|>",
            "answer": question.answer or None,
            "category": question.category,
        }
        for row in range(each)
        for column in columns
        for question in column[row : row + 1]
    ]


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_network(directory: Path) -> tuple[Network, Tokenizer]:
    """An exported model in its training form again, in float32, and its tokenizer."""
    from safetensors.torch import load_file

    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    tensors = load_file(directory / "model.safetensors")
    network = Network(
        Shape(
            vocab_size=config["vocab_size"], hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"], num_layers=config["num_hidden_layers"],
            num_heads=config["num_attention_heads"], num_kv_heads=config["num_key_value_heads"],
            head_dim=config["head_dim"], rope_theta=config["rope_parameters"]["rope_theta"],
            rms_norm_eps=config["rms_norm_eps"],
        )
    )  # fmt: skip
    state = {name.removeprefix("encoder."): tensor.float() for name, tensor in tensors.items() if "head" not in name}
    network.load_state_dict(state)
    return network.eval(), Tokenizer.from_file(str(directory / "tokenizer.json"))
