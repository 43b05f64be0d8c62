"""The commands in this repository's documents: found by parsing the Markdown, checked, and run."""
