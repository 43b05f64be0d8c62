"""`python -m tools.builtin_model COMMAND`: see the package's documentation."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tokenizers import Tokenizer

from tools.builtin_model import quality
from tools.builtin_model.calling.measured import tool_prompts
from tools.builtin_model.export import export, held_out_prompts
from tools.builtin_model.network import Shape
from tools.builtin_model.tokens import train_tokenizer
from tools.builtin_model.train import STAGES, Recipe, Trainer, extended

BUILTIN = Path(__file__).resolve().parents[2] / "engine" / "builtin"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, prog="python -m tools.builtin_model", description="Make the built-in model."
    )
    parser.add_argument("--work", type=Path, default=Path("build/builtin_model"), help="where the run is kept")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("tokenizer", allow_abbrev=False, help="train the tokenizer on generated text (seconds)")
    train = commands.add_parser("train", allow_abbrev=False, help="train the model, or go on where it stopped")
    train.add_argument("--causal-steps", type=int, default=Recipe.causal_steps)
    train.add_argument("--joint-steps", type=int, default=Recipe.joint_steps)
    train.add_argument("--seed", type=int, default=Recipe.seed)
    extend = commands.add_parser(
        "extend",
        allow_abbrev=False,
        help="train an exported model further, with more kinds of questions among the text",
    )
    extend.add_argument("source", type=Path, help="the exported model to start from")
    extend.add_argument("--stage", type=int, choices=STAGES, default=2, help="settings of which stage (%(default)s)")
    for training in (train, extend):
        training.add_argument(
            "--threads", type=int, default=torch.get_num_threads(), help="torch threads (%(default)s)"
        )
        training.add_argument(
            "--compile", action="store_true", help="compile the loss (needs a C++ compiler; 1.4 times as fast)"
        )
        training.add_argument("--until", type=int, help="stop after this step")
        training.add_argument("--save-every", type=int, default=200, help="steps (%(default)s)")
    written = commands.add_parser("export", allow_abbrev=False, help="write the published layout")
    written.add_argument("target", type=Path, nargs="?", default=BUILTIN, help="default: %(default)s")
    quality_ = commands.add_parser("quality", allow_abbrev=False, help="the model card's tables, in Markdown (minutes)")
    calls = commands.add_parser("calls", allow_abbrev=False, help="tokens a pass of calls of tools, beside stories")
    for judged in (quality_, calls):
        judged.add_argument("model", type=Path, nargs="?", default=BUILTIN, help="default: %(default)s")
        judged.add_argument("--each", type=int, default=32, help="held-out prompts of a category (%(default)s)")
    return parser


def _judge(model: Path, each: int) -> None:
    """Prints the model card's tables."""
    lines = held_out_prompts(each)
    print(quality.table(quality.measure(model, lines, quality.cells()), len(lines)))
    lines = tool_prompts(each)
    print("\n" + quality.table(quality.measure(model, lines, quality.tool_cells()), len(lines), "prompts with tools"))
    print("\n" + quality.call_table(model, each))
    print("\n" + quality.calibration_table(quality.calibration(model, each)))


def _trainer(arguments: argparse.Namespace) -> Trainer:
    """The run of the command `train` or `extend`. Raises FileNotFoundError where a file that it needs is missing."""
    work: Path = arguments.work
    if arguments.command == "extend":
        return extended(arguments.source, work, STAGES[arguments.stage], arguments.compile)
    if not (work / "tokenizer.json").exists():
        raise FileNotFoundError(f"{work / 'tokenizer.json'} is missing: run the command 'tokenizer' first")
    vocab_size = Tokenizer.from_file(str(work / "tokenizer.json")).get_vocab_size()
    recipe = Recipe(seed=arguments.seed, causal_steps=arguments.causal_steps, joint_steps=arguments.joint_steps)
    return Trainer(recipe, Shape(vocab_size), work, arguments.compile)


def main() -> None:
    parser = _parser()
    arguments = parser.parse_args()
    if arguments.command == "quality":
        _judge(arguments.model, arguments.each)
        return
    if arguments.command == "calls":
        print(quality.call_table(arguments.model, arguments.each))
        return
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    if arguments.command == "tokenizer":
        tokenizer = train_tokenizer(work / "tokenizer.json")
        print(f"{work / 'tokenizer.json'}: {tokenizer.get_vocab_size()} tokens")
        return
    if arguments.command == "export":
        print(f"{arguments.target / 'model.safetensors'}: SHA-256 {export(work, arguments.target)}")
        return
    torch.set_num_threads(arguments.threads)
    try:
        trainer = _trainer(arguments)
    except FileNotFoundError as error:
        parser.error(str(error))
    trainer.train(arguments.until, arguments.save_every)


if __name__ == "__main__":
    main()
