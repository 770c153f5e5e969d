"""Posteriors by long runs of NUTS, against which ``tests/test_references.py`` holds coordinate ascent."""
