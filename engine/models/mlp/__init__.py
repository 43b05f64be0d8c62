"""What follows attention in a layer: a gated MLP, or a mixture of small ones of which each token takes a few."""
