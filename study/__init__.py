"""This repository's study: one module per notebook, with its recipes and hyperparameters."""
