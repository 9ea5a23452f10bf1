"""Which gradient a configuration really takes: the production objective on policies whose KL gradient is known."""
