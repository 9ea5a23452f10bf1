"""From overrides to validated, identified cells. Hydra composes; components validate; no torch here."""
