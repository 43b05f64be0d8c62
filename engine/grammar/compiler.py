"""Compiles a request's grammar, within limits, on a thread beside the passes. No torch.

The same code runs in the API process's worker, which may be killed. The worker also probes the grammar, so every
grammar that reaches the engine has been compiled before, with a smaller stack and under a time limit.
"""

from __future__ import annotations

import json
import random
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, regex_to_lark
from tokenizers import Tokenizer

from engine.errors import RequestError
from engine.grammar.state import CompiledGrammar, GrammarVocabulary
from engine.request import Grammar

MAX_CHOICES = 1024
WHITESPACE = r"\x20|(\x0D?\x0A)[\x20\x09]{0,64}"
"""White space between two JSON tokens: a space, or a line break and an indentation, so that a model that would go on
with white space for ever has to go on with JSON."""
LIMITS = LLParserLimits(
    step_lexer_fuel=50_000,  # a mask may take about 4 ms at worst
    step_max_items=20_000,
    max_lexer_states=30_000,  # 1 to 2 KB each
    max_grammar_size=200_000,
    verbose_errors=False,
)
"""What one mask, one sequence and one grammar may cost at most. Beyond them the library gives up with an error."""
STACK_BYTES = 64 * 2**20
"""The compiler recurses along chains of references. The worker has a quarter of this: what fits there fits here."""
CACHE_SIZE = 64
"""Compiled grammars kept for further requests."""
PROBE_TOKENS = 48
PROBE_TEXTS = 4
PROBE_PUNCTUATION = '"{}[],: '


def load_vocabulary(
    path: Path, vocab_size: int, end_token_ids: tuple[int, ...], mask_token_id: int
) -> GrammarVocabulary:
    """The vocabulary of a tokenizer.json, for a model with `vocab_size` ids. RequestError if it cannot be read.

    A second of work for a hundred thousand ids. End ids that the tokenizer does not know cannot end a text inside the
    library; where it knows none, the mask id stands in, which is never generated.
    """
    try:
        text = path.read_text(encoding="utf-8")
        known = Tokenizer.from_str(text).get_vocab_size(with_added_tokens=True)
        ends = [token for token in end_token_ids if token < known] or [mask_token_id]
        tokenizer = LLTokenizer(text, n_vocab=max(vocab_size, known), eos_token=ends)
    except Exception as error:  # neither library says which exceptions it raises
        reason = "" if isinstance(error, OSError) else f" ({_first_line(str(error))})"
        raise RequestError(f"This model's tokenizer cannot be used with grammars{reason}.", "grammar") from None
    return GrammarVocabulary(tokenizer, frozenset(ends))


def compile_grammar(vocabulary: GrammarVocabulary, grammar: Grammar) -> CompiledGrammar:
    """Raises RequestError that says in one line what is wrong with the grammar. May take long, or much memory."""
    matcher = LLMatcher(vocabulary.tokenizer, _lark(grammar), log_level=0, limits=LIMITS)
    if not matcher.is_error():
        matcher.compute_bitmask()  # kept inside: the first mask of every sequence
    if matcher.is_error():
        raise RequestError(describe_failure(grammar, matcher.get_error()), "grammar", "invalid_grammar")
    return CompiledGrammar(vocabulary, matcher)


def probe(compiled: CompiledGrammar, grammar: Grammar) -> None:
    """Generates a few random texts of the grammar, always the same ones. RequestError if that alone reaches a limit.

    Half of the steps prefer punctuation, or a random text would hardly ever leave its first JSON string.
    """
    tokenizer, ends = compiled.vocabulary.tokenizer, compiled.vocabulary.end_token_ids
    punctuation = {token for char in PROBE_PUNCTUATION for token in tokenizer.tokenize_str(char)}
    for seed in range(PROBE_TEXTS):
        generator = random.Random(seed)
        matcher = compiled.matcher.deep_copy()
        for _ in range(PROBE_TOKENS):
            bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
            allowed = [t for t in np.flatnonzero(np.unpackbits(bits, bitorder="little")).tolist() if t not in ends]
            if not allowed or matcher.is_error():
                break
            preferred = [token for token in allowed if token in punctuation] if generator.random() < 0.5 else []
            matcher.try_consume_tokens([generator.choice(preferred or allowed)])
        if matcher.is_error() and not matcher.get_error().startswith("NoExtension"):
            raise RequestError(describe_failure(grammar, matcher.get_error()), "grammar", "invalid_grammar")


def describe_failure(grammar: Grammar, error: str) -> str:
    """One line about a grammar that cannot be used, from the library's many."""
    names = {"json_schema": "JSON schema", "json_object": "JSON object", "regex": "regular expression"}
    name = names.get(grammar.kind, "list of choices")
    explained = re.search(r"^\s*error: (.+)$", error, re.MULTILINE)
    reason = explained.group(1) if explained else _first_line(error)
    reason = re.sub(r"^at \d+\(\d+\): ", "", reason)
    reason = re.sub(r"^(failed to compile JSON schema: |invalid regex \".*\" \(in regex\): )", "", reason)
    if reason.startswith(("panic", "lexer error", "Parser Error", "schema too large")) or "limit" in reason:
        reason = "it is too large or too complex"
    if reason.startswith("NoExtension"):
        reason = "no text can match it"
    return f"The {name} cannot be used: {reason[:200].rstrip('.')}."


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "unknown error"


def _lark(grammar: Grammar) -> str:
    """The grammar in the library's own language. The model chooses its own tokenisation: forcing the text's canonical
    one would cost time that no limit bounds."""
    bodies: dict[str, Callable[[str], str]] = {
        "json_schema": lambda source: _json_body(_read_json(source, dict, "The JSON schema must be a JSON object.")),
        "json_object": lambda source: _json_body({"type": "object"}),
        "regex": _regex_body,
        "choice": _choice_body,
    }
    return '%llguidance {"no_forcing": true}\nstart: ' + bodies[grammar.kind](grammar.source)


def _json_body(schema: dict[str, Any]) -> str:
    return "%json " + json.dumps(schema | {"x-guidance": {"whitespace_pattern": WHITESPACE}})


def _regex_body(source: str) -> str:
    if (len(source) - len(source.rstrip("\\"))) % 2:
        raise RequestError("The regular expression cannot be used: it ends with a lone backslash.", "grammar")
    return f"/{regex_to_lark(source, 'dw')}/"  # \d and \w are ASCII, as in JSON Schema


def _choice_body(source: str) -> str:
    choices = _read_json(source, list, "The choices must be a list of strings.")
    if not choices or not all(type(choice) is str for choice in choices):
        raise RequestError("The choices must be a list of at least one string, and of strings alone.", "grammar")
    if len(choices) > MAX_CHOICES:
        raise RequestError(f"There may be at most {MAX_CHOICES} choices, not {len(choices)}.", "grammar")
    return " | ".join(json.dumps(choice) for choice in choices)


def _read_json(source: str, kind: type, message: str) -> Any:
    try:
        value = json.loads(source)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, kind):
        raise RequestError(message, "grammar", "invalid_grammar")
    return value


class GrammarCompiler:
    """Compiles the engine's grammars, one at a time, on a thread of its own; keeps the latest ones. Not thread-safe."""

    def __init__(self, load: Callable[[], GrammarVocabulary]) -> None:
        """load: called once, on the thread, when the first grammar comes."""
        self._load = load
        self._vocabulary: GrammarVocabulary | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._futures: OrderedDict[Grammar, Future[CompiledGrammar]] = OrderedDict()

    def start(self, grammar: Grammar) -> Future[CompiledGrammar]:
        """The grammar compiled, now or later. The future raises RequestError for one that cannot be used."""
        future = self._futures.pop(grammar, None)
        if future is None:
            if self._threads is None:
                self._threads = _thread_with_stack(STACK_BYTES)
            future = self._threads.submit(self._compile, grammar)
        self._futures[grammar] = future
        while len(self._futures) > CACHE_SIZE:
            self._futures.popitem(last=False)
        return future

    def _compile(self, grammar: Grammar) -> CompiledGrammar:
        if self._vocabulary is None:
            self._vocabulary = self._load()
        return compile_grammar(self._vocabulary, grammar)


def _thread_with_stack(size: int) -> ThreadPoolExecutor:
    """One thread with a stack of `size` bytes, already running: later threads get the usual size again."""
    threads = ThreadPoolExecutor(1, thread_name_prefix="grammar")
    before = threading.stack_size(size)
    try:
        threads.submit(int).result()
    finally:
        threading.stack_size(before)
    return threads
