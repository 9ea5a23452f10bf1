"""What this lab adds to klsweep (`plugins=[mylab.rl]`): an estimator, a reward, a task, and their conf/."""
