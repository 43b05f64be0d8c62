"""Commands are found, checked and compared as a reader of the documents would take them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.docs_commands.blocks import ROOT, Block, Note, blocks, commands, inline_commands
from tools.docs_commands.checks import Mistake, check_command, check_data
from tools.docs_commands.plan import Step, steps
from tools.docs_commands.running import Runner, compare

DOCUMENT = """
Before it.

<!-- not run: needs a moon -->
```console
$ first 'quoted
over lines' \\
    and more | jq .
printed
$ second
```

1. In a list:

   ```python
   print(1)
   ```

<!-- another comment -->
```
no command
```

| `make test` | and `lightcone bench light --core 1`, not `lightcone_metric` or `lightcone.logger` |
|---|---|
"""


@pytest.fixture
def document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tools.docs_commands.blocks.ROOT", tmp_path)
    file = tmp_path / "it.md"
    file.write_text(DOCUMENT)
    return file


def block(language: str, text: str, note: Note | None = None) -> Block:
    return Block(ROOT / "it.md", 1, language, text, note)


def test_blocks_are_found_wherever_they_stand(document: Path) -> None:
    """One in a list would not be run by a search for lines that begin with backticks."""
    found = list(blocks(document))
    assert [each.language for each in found] == ["console", "python", ""]
    assert [each.note for each in found] == [Note("not run", "needs a moon"), None, None]
    assert [each.place for each in found] == ["it.md:6", "it.md:16", "it.md:21"]


def test_a_command_ends_where_the_shell_would_end_it(document: Path) -> None:
    first, second = commands(next(blocks(document)))
    assert first.text == "first 'quoted\nover lines' \\\n    and more | jq ."
    assert first.shown == "printed\n"
    assert (second.text, second.shown, second.place) == ("second", "", "it.md:10")


def test_commands_within_sentences_are_those_of_this_repository(document: Path) -> None:
    assert [each.text for each in inline_commands(document)] == ["make test", "lightcone bench light --core 1"]


def test_who_says_nothing_of_an_unknown_program_is_told() -> None:
    for unknown in (block("console", "$ frobnicate --all\n"), block("ruby", "puts 1"), block("", "$ lightcone chat\n")):
        with pytest.raises(ValueError, match=r"it\.md:1"):
            steps(unknown)
    [step] = steps(block("console", "$ frobnicate --all\n", Note("not run", "it is not installed")))
    assert (step.how, step.why) == ("not run", "it is not installed")


@pytest.mark.parametrize(
    ("text", "how"),
    [
        ("curl localhost:8000/health", "run"),
        ("lightcone generate 'Hello'", "run"),
        ("lightcone serve --help", "run"),
        ("lightcone serve --config configs/builtin.toml", "not run"),
        ("lightcone bench light --core 1", "slow"),
        ("lightcone bench light --model DIRECTORY", "not run"),
        ("KEY=x docker compose up", "not run"),
        ("python -m tools.soak --minutes 10", "slow"),
        ("curl localhost:8000/health | no-such-program", "not run"),
    ],
)
def test_how_a_command_is_run(text: str, how: str) -> None:
    [step] = steps(block("sh", text))
    assert step.how == how
    assert step.why or how != "not run"


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("lightcone sing", "no command"),
        ("lightcone serve --max-runing 4", "--max-runing"),
        ("lightcone serve --max-running many", "many"),
        ("lightcone serve --config configs/no-such.toml", "no file"),
        ("lightcone loadtest run --rates 4", "--rates"),
        ("lightcone loadtest --htm report", "--htm"),
        ("lightcone bench lights", "lights"),
        ("lightcone bench light --cores 1", "--cores"),
        ("make no-such-target", "no-such-target"),
        ("python -m tools.no_such", "no module"),
        ("python -m tools.soak --hours 1", "--hours"),
    ],
)
def test_what_does_not_exist_is_a_mistake(text: str, mistake: str) -> None:
    with pytest.raises(Mistake, match=mistake):
        check_command(text)


def test_what_exists_is_none() -> None:
    check_command("LIGHTCONE_PORT=1 .venv/bin/lightcone serve MODEL --max-running 4 --no-prefix-caching")
    check_command("lightcone loadtest sweep --concurrency 1,4 --html report.html | tee --no-such-option")
    check_command("lightcone loadtest --html report.html")
    check_command("lightcone bench compare --no-plain --core 1")
    check_command("python -m tools.soak --minutes 10")
    check_command("make test ARGS='-k scheduler'")


@pytest.mark.parametrize(("language", "text"), [("json", "{'a': 1}"), ("toml", "a = "), ("yaml", "a: [1")])
def test_data_that_cannot_be_read_is_a_mistake(language: str, text: str) -> None:
    with pytest.raises(Mistake, match=language):
        check_data(language, text)


def test_what_is_printed_is_compared_but_for_what_is_left_out() -> None:
    compare('{"id": "…", "n": 1}\n…\nend\n', '{"id": "x-1", "n": 1}\nmore\nlines\nend\n')
    for shown in ("other", '{"id": "…", "n": 2}', '{"id": "…"'):
        with pytest.raises(Mistake, match="printed"):
            compare(shown, '{"id": "x-1", "n": 1}\n')


def test_a_program_that_fails_does_not_hide_behind_others() -> None:
    programs = [steps(block("python", text))[0] for text in ("print(1)", "unknown_name", "raise SystemExit(3)")]
    programs = [step._replace(command=step.command._replace(place=str(n))) for n, step in enumerate(programs)]
    with Runner("http://127.0.0.1:1") as runner:
        failed = runner.run_programs(programs)
    assert list(failed) == ["1", "2"]
    assert "unknown_name" in failed["1"]


def test_a_command_that_fails_or_says_something_else_is_a_mistake() -> None:
    with Runner("http://127.0.0.1:1") as runner:
        for text in ("false | true", "curl -s localhost:8000/health", "$ echo 1\n2\n"):
            step = Step("run", "", "sh", next(commands(block("console" if "$" in text else "sh", text))))
            with pytest.raises(Mistake, match=r"ended with|printed"):
                runner.run(step)
        runner.run(Step("run", "", "sh", next(commands(block("console", "$ echo 1\n1\n")))))
