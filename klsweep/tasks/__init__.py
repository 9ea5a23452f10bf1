"""Prompts and verifiers. No torch: a task knows text, never tokens or models."""
