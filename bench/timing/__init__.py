"""How long the passes of an engine take, what their parts take, and what the host takes around them."""
