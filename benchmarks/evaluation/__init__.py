"""The shapes world, its detector and a GenEval-like suite of prompts."""
