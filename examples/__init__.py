"""Programs to run; see the README."""
