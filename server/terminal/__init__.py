"""`lightcone generate` and `lightcone chat`: HTTP clients for the terminal, like any other."""
