"""From records to tables. Reads run folders only; no torch, no Hydra, no W&B."""
