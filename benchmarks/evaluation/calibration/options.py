"""The options of `calibrate`; no torch here, so that --help is instant."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...bench import RESULTS

METRICS = ("latent", "psnr", "ssim", "texture", "overall", "combined")  # keys of `quality.METRICS`
PAPER = "paper"  # the budget of the bounds printed for this family of models
ORDERS = ("finest", "coarsest")  # which bound is searched first


def _budget(text: str) -> int | str:
    if text != PAPER and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of tokens; write one, or {PAPER}")
    return text if text == PAPER else int(text)


def add_options(parser: argparse.ArgumentParser) -> None:
    """All but those of the model and of what decides a picture."""
    add = parser.add_argument
    add("--k", type=int, default=4, metavar="K", help="scales that are refined (default: 4)")
    add("--metric", choices=METRICS, default="psnr", help="latent is fastest; all but overall compare with dense (default: psnr)")
    add("--tolerance", type=float, metavar="X", help="how much of the metric may be lost (default: by metric)")
    add("--tokens", type=_budget, metavar="N", help="not a tolerance but refine tokens a picture, at most; paper: as its bounds")
    add("--step", type=float, default=5.0, metavar="P", help="bounds are multiples of it, percent (default: 5)")
    add("--order", choices=ORDERS, default="finest", help="which bound is searched first (default: finest)")
    add("--prompts", type=int, default=24, metavar="N", help="prompts of the shapes world, a picture each (default: 24)")
    add("--prompt-file", type=Path, metavar="FILE", help="prompts of your own instead, one a line")
    add("--batch", type=int, default=4, metavar="N", help="pictures drawn together (default: 4)")
    add("--compare", type=int, default=2, metavar="N", help="random rivals beside the paper's bounds, equal tokens (default: 2)")
    add("--state", type=Path, metavar="FILE", help="keep every trial there (JSON); the same file again goes on from it")
    add("--plot", type=Path, metavar="PNG", help="draw the metric against the tokens of everything tried")
    add("--save", type=Path, nargs="?", const=RESULTS, metavar="DIR", help="store the result there, default benchmarks/results")
    add("--json", action="store_true", help="print one JSON object")
