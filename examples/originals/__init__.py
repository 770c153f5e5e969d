"""Models as their authors write them, fitted and held against long runs of NUTS: ``python -m examples.originals``."""
