"""`lightcone generate`: a completion in the terminal, over HTTP like any other client."""
