"""Measures how gaps before a suffix are filled when nobody knows their length."""
