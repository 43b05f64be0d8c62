"""Weight matrices: how they are stored, and how they are multiplied."""
