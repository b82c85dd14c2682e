"""Latent variable models, put together from networks, densities and flows."""
