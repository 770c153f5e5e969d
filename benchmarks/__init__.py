"""How fast coordinate ascent is, as ratios to what one would use instead; ``python -m benchmarks`` runs all."""
