"""Real engines: the lab of network namespaces, and the tests that drive it with the stock docker CLI."""
