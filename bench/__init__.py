"""`lightcone bench`: benchmarks of the engine in process; `compare` also measures the server over HTTP."""
