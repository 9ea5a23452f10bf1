"""A lab's own package, outside klsweep: `mylab.rl` is its plugin."""
