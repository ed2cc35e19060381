"""The re-done study: one module for each notebook, with its recipes and hyperparameters."""
