"""`lightcone bench peers`: this server beside others on the same random weights, over HTTP, in turn."""
