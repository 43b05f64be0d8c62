"""Models that several ranks share: which part of every tensor a rank has, and how their products become one."""
