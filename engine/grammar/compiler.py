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

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, gbnf_to_lark, regex_to_lark
from tokenizers import Tokenizer

from engine.errors import RequestError
from engine.grammar.json_schema.keywords import ends_with_lone_backslash
from engine.grammar.json_schema.library import LibrarySchema, any_object, library_schema
from engine.grammar.state import CompiledGrammar, GrammarVocabulary
from engine.grammar.structure import read_structure
from engine.grammar.structure_rules import structure_rules
from engine.request import Grammar

MAX_CHOICES = 1024
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
_SCHEMA_REASONS = {
    "oneOf constraints": "'oneOf' is only supported where no two of its options can match the same text",
    "min/maxProperties only": "'minProperties' and 'maxProperties' need all listed properties to be required",
    "patternProperty regexes": "'patternProperties' must not overlap: a name may match one of them at most",
    "circular references": "'$ref' leads back to itself beside other keywords",
    "intersection stack level": "'allOf' and '$ref' are nested too deeply",
    "Regex is empty": "no string can match its 'pattern', 'format' and length together",
    "if regex is empty": "'pattern', 'format' and length are too complex together",
    "schema is false": "no value can match it",
    "lookarounds": "'pattern' may have '^' at its start and '$' at its end, but no other assertions",
}
"""Our words for what the library says of JSON schemas, by a part of its message."""
_LIMIT = re.compile(r"^[^']*\blimit\b")
"""Of a message about a limit of the library; not of one that quotes a property of that name."""
DEAD_END = "an answer could begin in a way that no token of this model's vocabulary can continue"
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
    if grammar.kind == "structure":
        matcher = _matcher(vocabulary, _structure_body(vocabulary, grammar))
    else:
        _, matcher = _written(vocabulary, grammar)
    if matcher.is_error():
        raise RequestError(describe_failure(grammar, matcher.get_error()), "grammar", "invalid_grammar")
    return CompiledGrammar(vocabulary, matcher)


def _structure_body(vocabulary: GrammarVocabulary, grammar: Grammar) -> str:
    """A structure in the library's language. Each grammar in it is compiled alone first: RequestError tells of it."""

    def write_inner(inner: Grammar) -> str:
        body, matcher = _written(vocabulary, inner)
        if matcher.is_error():
            raise RequestError(describe_failure(inner, matcher.get_error()), "grammar", "invalid_grammar")
        return body

    try:
        return structure_rules(read_structure(grammar.source), write_inner)
    except (ValueError, RecursionError):
        raise RequestError("The structure of the answer cannot be read.", "grammar", "invalid_grammar") from None


def _written(vocabulary: GrammarVocabulary, grammar: Grammar) -> tuple[str, LLMatcher]:
    """A grammar that is no structure in the library's language, and its matcher, which may hold an error."""
    if grammar.kind == "json_schema":
        return _written_schema(vocabulary, library_schema(grammar.source, compact=grammar.compact))
    body = _BODIES[grammar.kind](grammar)
    return body, _matcher(vocabulary, body)


def _written_schema(vocabulary: GrammarVocabulary, schema: LibrarySchema) -> tuple[str, LLMatcher]:
    """A schema with closed objects; with open objects if only that can be used."""
    closed = f"%json {schema.closed}", _matcher(vocabulary, f"%json {schema.closed}")
    if schema.opened == schema.closed or not (schema.needs_both or closed[1].is_error()):
        return closed
    opened = f"%json {schema.opened}", _matcher(vocabulary, f"%json {schema.opened}")
    return opened if opened[1].is_error() or closed[1].is_error() else closed


def _matcher(vocabulary: GrammarVocabulary, body: str) -> LLMatcher:
    """The matcher of a grammar in the library's own language, with its first mask computed; or one with an error.

    The model chooses its own tokenisation: forcing the text's canonical one would cost time that no limit bounds.
    """
    text = f'%llguidance {{"no_forcing": true}}\nstart: {body}'
    matcher = LLMatcher(vocabulary.tokenizer, text, log_level=0, limits=LIMITS)
    if not matcher.is_error():
        matcher.compute_bitmask()  # kept inside: the first mask of every sequence
    return matcher


def probe(compiled: CompiledGrammar, grammar: Grammar) -> None:
    """Follows the grammar some way, always the same way. RequestError if that alone reaches a limit or a dead end.

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
        if matcher.is_error():
            failure = describe_failure(grammar, matcher.get_error().replace("NoExtension", DEAD_END, 1))
            raise RequestError(failure, "grammar", "invalid_grammar")


def describe_failure(grammar: Grammar, error: str) -> str:
    """One line about a grammar that cannot be used, from the library's many."""
    names = {
        "json_schema": "JSON schema", "json_object": "JSON object", "regex": "regular expression",
        "structure": "form of the answer", "lark": "grammar",
    }  # fmt: skip
    name = names.get(grammar.kind, "list of choices")
    explained = re.search(r"^\s*error: (.+)$", error, re.MULTILINE)
    reason = explained.group(1) if explained else _first_line(error)
    reason = re.sub(r"^at \d+\(\d+\): ", "", reason)
    expression = re.search(r"regex parse error:\n    (.+)", error)
    reason = re.sub(r"^(failed to compile JSON schema: |invalid regex \".*\" \(in regex\): )", "", reason)
    if reason.startswith(("panic", "lexer error", "Parser Error", "schema too large")) or _LIMIT.search(reason):
        reason = "it is too large or too complex"
    if reason.startswith("NoExtension"):
        reason = "no text can match it"
    if reason.startswith(DEAD_END):
        reason = DEAD_END
    if grammar.kind == "json_schema":
        reason = next((ours for theirs, ours in _SCHEMA_REASONS.items() if theirs in reason), reason)
        reason = f"'pattern' {expression.group(1)[:80]!r}: {reason}" if expression else reason
    return f"The {name} cannot be used: {reason[:200].rstrip('.')}."


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "unknown error"


def _regex_body(grammar: Grammar) -> str:
    source = grammar.source
    if ends_with_lone_backslash(source):
        raise RequestError("The regular expression cannot be used: it ends with a lone backslash.", "grammar")
    return f"/{regex_to_lark(source, 'dw')}/"  # \d and \w are ASCII, as in JSON Schema


def _choice_body(grammar: Grammar) -> str:
    try:
        choices = json.loads(grammar.source)
    except (ValueError, RecursionError):
        choices = None
    if not isinstance(choices, list):
        raise RequestError("The choices must be a list of strings.", "grammar", "invalid_grammar")
    if not choices or not all(type(choice) is str for choice in choices):
        raise RequestError("The choices must be a list of at least one string, and of strings alone.", "grammar")
    if len(choices) > MAX_CHOICES:
        raise RequestError(f"There may be at most {MAX_CHOICES} choices, not {len(choices)}.", "grammar")
    return " | ".join(json.dumps(choice) for choice in choices)


def _lark_body(grammar: Grammar) -> str:
    """Rules as a grammar within the grammar, so that their names cannot meet others."""
    try:
        rules = gbnf_to_lark.any_to_lark(grammar.source)
    except Exception as error:  # the library's converter raises what its parser trips over, too
        raise RequestError(f"The grammar cannot be used: {_first_line(str(error))[:200]}", "grammar") from None
    return "%lark {\n" + re.sub(r"^%llguidance .*$", "", rules, flags=re.MULTILINE) + "\n}"


_BODIES: dict[str, Callable[[Grammar], str]] = {
    "json_object": lambda grammar: f"%json {any_object(compact=grammar.compact)}",
    "regex": _regex_body,
    "choice": _choice_body,
    "lark": _lark_body,
}
"""By kind of grammar, its form in the library's language."""


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
