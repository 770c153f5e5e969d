"""Gradient methods, one a file: estimators, the guarded trainer, flows, Gaussian guides, Monte Carlo EM."""
