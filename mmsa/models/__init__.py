"""Encoders, fusion heads and the model made of them; import from the modules, not from here."""
