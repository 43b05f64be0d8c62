"""`lightcone bench`: measures the engine in process, without HTTP."""
