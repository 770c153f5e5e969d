"""Three scripts as users of Pyro write them, for SVI, and beside each the same script for coordinate ascent."""
