"""Questions of the built-in model's domain, whose answers can be checked letter for letter."""
