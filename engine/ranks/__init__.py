"""Ranks: the processes that run one model together, each with a share of its weights; how they start, speak and end."""
