"""The API process: HTTP, chat templates, tokenising, streaming, metrics. It holds no model and never imports torch."""
