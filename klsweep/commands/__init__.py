"""The commands, by what they are given: overrides (`composing`), a sweep folder (`sweeps`), a run folder (`runs`),
weights (`weights`), sweep folders and a W&B account (`mirrors`), log-ratios or a record (`bounds`)."""
