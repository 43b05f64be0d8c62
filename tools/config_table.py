"""`python -m tools.config_table`: the options in docs/OPERATIONS.md, from the configuration classes."""

from __future__ import annotations

import sys
from pathlib import Path

from server.operation.config import ENV_PREFIX
from server.operation.flags import OptionDoc, documented_options

DOCUMENT = Path(__file__).parents[1] / "docs" / "OPERATIONS.md"
BEGIN, END = "<!-- options: begin -->\n", "<!-- options: end -->\n"


def table(section: str, options: list[OptionDoc]) -> str:
    """One section's options as a Markdown table."""
    rows = "".join(f"| `{option.name}` | {_default(option)} | {option.text} |\n" for option in options)
    return f"`[{section}]`\n\n| option | default | meaning |\n|---|---|---|\n{rows}"


def _default(option: OptionDoc) -> str:
    if option.default in (None, ()):
        return ""
    return f"`{str(option.default).lower() if isinstance(option.default, bool) else option.default}`"


def document(text: str) -> str:
    """The document with the tables as they should be. Raises ValueError where it has no place for them."""
    before, found, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not found or not end:
        raise ValueError(f"{DOCUMENT} has no place for the options")
    tables = "\n".join(table(section, options) for section, options in documented_options().items())
    return f"{before}{BEGIN}\n{tables}\n{END}{after}"


def main() -> int:
    DOCUMENT.write_text(document(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote the options into {DOCUMENT}; each is also a flag and a variable {ENV_PREFIX}NAME")
    return 0


if __name__ == "__main__":
    sys.exit(main())
