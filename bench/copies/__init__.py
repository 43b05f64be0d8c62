"""Measures what drafts from predictions and from prompts are worth."""
