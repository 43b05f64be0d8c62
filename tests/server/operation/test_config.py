"""Configuration: which source wins, and what an error says."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import get_args

import pytest

from engine.errors import ConfigError
from server.__main__ import main
from server.operation.config import Config, describe, load_config, option_types
from server.text.model_files import default_name, resolve_model

CONFIGS = Path(__file__).parents[3] / "configs"


def test_flags_win_over_variables_over_the_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[server]\nport = 1\nhost = 'file'\nkeep_alive = 7\n[engine]\nmax_running = 5\n")
    config = load_config({"port": "3"}, {"LIGHTCONE_PORT": "2", "LIGHTCONE_HOST": "env"}, str(file))
    assert (config.server.port, config.server.host, config.server.keep_alive) == (3, "env", 7.0)
    assert (config.engine.max_running, config.engine.page_size) == (5, 16)


def test_text_of_flags_and_variables_becomes_the_options_type() -> None:
    environ = {
        "LIGHTCONE_PREFIX_CACHING": "false", "LIGHTCONE_API_KEYS": "a, b", "LIGHTCONE_MAX_MODEL_LEN": "128",
        "LIGHTCONE_DRAIN_DELAY": "1.5", "LIGHTCONE_DTYPE": "float64",
    }  # fmt: skip
    config = load_config({}, environ)
    assert config.engine.prefix_caching is False
    assert config.server.api_keys == ("a", "b")
    assert (config.engine.max_model_len, config.server.drain_delay, config.engine.dtype) == (128, 1.5, "float64")


@pytest.mark.parametrize(
    ("flags", "environ", "file", "says"),
    [
        ({"port": "x"}, {}, None, "--port: 'x' is not valid"),
        ({"port": "70000"}, {}, None, "port must be between"),
        ({"dtype": "int4"}, {}, None, "--dtype: 'int4' is not valid: valid values: auto, float32, bfloat16"),
        ({"drain_delay": "inf"}, {}, None, r"drain_delay must be a finite number, not inf \(--drain-delay\)"),
        ({}, {}, "[server]\nkeep_alive = -1", r"keep_alive must be greater than 0, not -1.0 \(.*c\.toml: 'keep_alive'"),
        (
            {"engine_stall_timeout": "1"},
            {},
            None,
            "engine_stall_timeout must be greater than 1",
        ),
        ({}, {"LIGHTCONE_TLS_KEY": "x"}, None, "LIGHTCONE_TLS_KEY needs tls_cert"),
        ({}, {"LIGHTCONE_MAX_RUNING": "3"}, None, r"LIGHTCONE_MAX_RUNING; did you mean LIGHTCONE_MAX_RUNNING\?"),
        ({}, {"LIGHTCONE_MAX_RUNNING": "0"}, None, "max_running must be greater than 0"),
        ({"page_size": "24"}, {}, None, r"page_size must be a power of two, not 24 \(--page-size\)"),
        ({"max_block_length": "1"}, {}, None, "max_block_length must be between 2 and 1024, not 1"),
        ({"gpu_memory_utilization": "1.5"}, {}, None, "must be greater than 0 and at most 1, not 1.5"),
        ({}, {"LIGHTCONE_SSE_KEEPALIVE": "-1"}, None, r"sse_keepalive must be at least 0, not -1.0 \(LIGHTCONE_SSE"),
        ({}, {"LIGHTCONE_MAX_BATCH_TOKENS": "99"}, None, r"at least 1365 is needed \(LIGHTCONE_MAX_BATCH_TOKENS\)"),
        ({}, {"LIGHTCONE_API_KEYS": " "}, None, "LIGHTCONE_API_KEYS is set but holds nothing"),
        ({}, {}, "[server]\nprot = 1", r"c\.toml: unknown key 'prot' in \[server\]; did you mean 'port'"),
        ({}, {}, "[servr]\nport = 1", r"c\.toml: unknown section \[servr\]; valid sections: server, engine"),
        ({}, {}, "[server]\nport = '1'", r"c\.toml: 'port' in \[server\]: '1' is not valid"),
        ({}, {}, "port =", "not valid TOML"),
    ],
)
def test_an_error_names_the_key_where_it_stands_and_what_is_valid(
    tmp_path: Path, flags: dict[str, str], environ: dict[str, str], file: str | None, says: str
) -> None:
    path = tmp_path / "c.toml"
    path.write_text(file or "")
    with pytest.raises(ConfigError, match=says):
        load_config(flags, environ, str(path))


def test_what_kubernetes_puts_into_the_environment_is_no_mistake() -> None:
    """A Service named `lightcone` would otherwise keep its own pods from starting."""
    environ = {
        "LIGHTCONE_PORT": "tcp://10.0.0.7:8000", "LIGHTCONE_SERVICE_HOST": "10.0.0.7",
        "LIGHTCONE_PORT_8000_TCP_ADDR": "10.0.0.7", "LIGHTCONE_SERVICE_PORT": "8000",
    }  # fmt: skip
    assert load_config({}, environ).server.port == 8000


@pytest.mark.parametrize("preset", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_the_presets_are_valid(preset: Path) -> None:
    load_config({}, {}, str(preset))


def test_options_have_one_meaning_each() -> None:
    from engine.config import EngineConfig
    from server.operation.config import ServerConfig

    assert len(option_types()) == len(EngineConfig.__struct_fields__) + len(ServerConfig.__struct_fields__)


def test_every_number_has_a_range() -> None:
    """One without would take NaN, or a negative timeout."""
    from engine.config import ranges_of
    from server.operation.config import SECTIONS

    ranges = {name for struct in SECTIONS.values() for name in ranges_of(struct)}
    kinds = {name: {kind, *get_args(kind)} for name, (_, kind, _) in option_types().items()}
    assert ranges == {name for name, kind in kinds.items() if kind & {int, float}}


def test_what_is_printed_can_be_read_again_and_keeps_secrets(tmp_path: Path) -> None:
    config = load_config({"api_keys": "hush", "port": "81", "max_model_len": "99"}, {})
    text = describe(config)
    assert "hush" not in text
    file = tmp_path / "c.toml"
    file.write_text(text)
    again = load_config({"api_keys": "hush"}, {}, str(file))
    assert again == config != Config()


def test_print_config_and_errors_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--print-config", "--no-prefix-caching", "--port", "9"]) == 0
    assert "prefix_caching = false" in capsys.readouterr().out
    assert main(["serve", "--max-running", "many"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("lightcone: error: --max-running")
    assert error.count("\n") == 1


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    text = capsys.readouterr().out
    assert all(f"-{name.replace('_', '-')}" in text for name in option_types())


def test_models_are_found_where_they_are_said_to_be(tmp_path: Path) -> None:
    from engine.errors import ModelLoadError

    assert (resolve_model("builtin") / "config.json").exists()
    assert resolve_model(str(tmp_path)) == tmp_path
    assert default_name(str(tmp_path / "my-model")) == "my-model"
    assert default_name("org/name") == "org/name"
    for missing in ("/no/such/place", "nothing here", str(tmp_path / "x" / "y" / "z")):
        with pytest.raises(ModelLoadError, match="no such model directory"):
            resolve_model(missing)
    (tmp_path / "file").touch()
    with pytest.raises(ModelLoadError, match="is a file"):
        resolve_model(str(tmp_path / "file"))


def test_a_model_may_be_named_without_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "some/model", "--print-config"]) == 0
    assert 'model = "some/model"' in capsys.readouterr().out
    assert main(["serve", "--port", "9", "some/model", "--print-config"]) == 0
    assert 'model = "some/model"' in capsys.readouterr().out
    assert main(["serve", "one", "--model", "other"]) == 2
    assert capsys.readouterr().err == "lightcone: error: the model is given twice: one and --model other\n"


def test_what_users_of_other_servers_type(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--api-key", "hush", "--print-config"]) == 0
    assert "# api_keys: 1 set" in capsys.readouterr().out
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith("lightcone ")


@pytest.mark.parametrize(
    "words",
    [
        ["serve", "--max-runn", "3"], ["serve", "--tls", "x"], ["generate", "x", "--temp", "0"],
        ["loadtest", "run", "--concur", "1"], ["bench", "modes", "--concur", "1"],
    ],
)  # fmt: skip
def test_a_flag_is_never_guessed(words: list[str]) -> None:
    """A script that abbreviates breaks when another flag is added that begins alike."""
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2


def test_no_parser_of_the_project_guesses_flags() -> None:
    root = CONFIGS.parent
    for folder in ("server", "engine", "bench", "loadtest", "tools"):
        for path in root.joinpath(folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("ArgumentParser"):
                    assert "allow_abbrev=False" in ast.unparse(node), path
