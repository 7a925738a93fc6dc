"""Measures how long a step takes, beside torch.optim and the bandwidth of the machine."""
