"""Which sample goes into which split: protocols and their rules."""
