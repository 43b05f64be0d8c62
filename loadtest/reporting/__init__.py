"""The report of a load test: in the terminal, as JSON, as HTML and as plots."""
