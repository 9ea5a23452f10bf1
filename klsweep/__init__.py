"""klsweep: how KL regularisation should be put into RL fine-tuning of language models."""

__version__ = "0.1.0"
