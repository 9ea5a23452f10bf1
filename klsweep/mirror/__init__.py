"""Filling W&B from the records: what it is to hold, what it holds, and sending the difference."""
