"""Weights of networks: their files, the libraries that load them, and whether every tensor came."""
