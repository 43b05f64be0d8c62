"""Model families: their config keys, tensor names and traits."""
