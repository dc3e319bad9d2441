"""Next-scale-prediction models: transformer, multi-scale codec, text conditioning and checkpoints."""
