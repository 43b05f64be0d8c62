"""`lightcone bench compare`: the engine and the server against plain `transformers` loops, in one run."""
