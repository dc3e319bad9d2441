"""HART's reference numbers: the cases of a directory whose manifest lists `files` and `configs`.

A file's name tells its kind: <kind>, or <config>_<kind>.  Drawing runs teacher-forced, through the pipeline:
every scale gets the reference's codes and noise.  Errors are relative to the reference's largest number;
codes and sets of tokens must be equal.  Facts: docs/hart.md, section 14.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from comfy_moss.model.backbone import Branch, PositionedText, Step
from comfy_moss.model.hart import HartBackbone
from comfy_moss.model.hart_head import (
    guidance_weights,
    gumbel_softmax,
    gumbel_tau,
    pass_of,
    progress,
    top_k_of,
    top_k_top_p,
)
from comfy_moss.model.rope import coordinates
from comfy_moss.model.sampling import Guidance, Ramp, Sampling
from comfy_moss.model.schedule import Positions
from comfy_moss.pipeline.dispatch import Dispatch
from comfy_moss.pipeline.draft import Recipe, Run, draw_draft
from comfy_moss.pipeline.fastvar import finish_fastvar
from comfy_moss.pipeline.refine import refine_sequence

from .comparison import EXACT, Check, Hooks, PeakComparison, check_kinds, run_case
from .verify_hart_parts import CLOSE, DIFFUSED, PARTS, Golden, first_half, image01

MIXED = 1e-3  # soft mixes of codes, in which errors of logits grow by (1 + ratio) / temperature, up to 58


@dataclass(frozen=True)
class WatchedBranch:
    """A `Branch` whose picked tokens are compared."""

    inner: Branch
    comparison: PeakComparison
    scale: int

    def pick(self, layer: int, kind: str, x: Tensor) -> Tensor | None:
        picked = self.inner.pick(layer, kind, x)
        if picked is not None:
            name = {"sa": "attn", "ffn": "ffn"}[kind]
            self.comparison.check(f"s{self.scale:02d}.block{layer}.{name}.kept", picked, EXACT, "kept tokens")
        return picked

    def fill(self, layer: int, kind: str, update: Tensor, picked: Tensor | None) -> Tensor:
        return self.inner.fill(layer, kind, update, picked)


@dataclass(frozen=True)
class Probe(HartBackbone):
    """A backbone that compares what passes through it and always answers with the reference's codes and
    noise.

    Attributes:
        strides: "sNN" -> every which token's logits the reference holds; 1 where it says nothing.
        order: (B, P^2) in which the last scale is drawn in several passes.
    """

    comparison: PeakComparison = None
    strides: Mapping[str, int] = field(default_factory=dict)
    order: Tensor | None = None

    def forward(self, tokens: Tensor | None, step: Step) -> Tensor:
        if step.branch:
            watched = WatchedBranch(step.branch, self.comparison, int(step.positions.scale[0, 0]))
            step = replace(step, branch=watched)
        scale, check = int(step.positions.scale[0, 0]), self.comparison.check
        if tokens is not None:
            check(f"s{scale - 1:02d}.next_feat", tokens.transpose(1, 2), CLOSE, relative=True)

        def compare(_module: object, _inputs: object, hidden: Tensor) -> None:
            check(f"s{scale:02d}.hidden", hidden, CLOSE, relative=True)
            stride = self.strides.get(f"s{scale:02d}", 1)
            logits = self.transformer.logits(hidden, step.condition)[:, ::stride]
            check(f"s{scale:02d}.logits_raw", logits, CLOSE, relative=True)

        with Hooks([self.transformer.register_forward_hook(compare)]):
            return super().forward(tokens, step)

    def draw_order(self, step: Step) -> Tensor:
        return self.order

    def sample(self, hidden: Tensor, step: Step) -> Tensor:
        sampling = step.sampling
        scale, final = int(step.positions.scale[0, 0]), len(step.schedule) - 1
        logits = self.logits(hidden, step)
        if scale == final and self.passes > 1:
            return self._several_passes(hidden, logits, step)
        codes = self._codes(scale, logits, step, sampling)
        tokens = self._vectors(scale, codes, logits, step, sampling)
        noisy = scale == final and "diff0.init_noise" in self.comparison.expected
        return tokens + self.checked_residual("diff0", hidden, codes, step) if noisy else tokens

    def _codes(self, scale: int, logits: Tensor, step: Step, sampling: Sampling) -> Tensor:
        """The reference's codes: given ones as they are, drawn ones if we could have drawn them (greedily:
        would have)."""
        comparison = self.comparison
        if (given := comparison.expected.get(f"in.codes{scale:02d}")) is not None:
            return given.long()
        codes = comparison.take(f"s{scale:02d}.idx").long()
        kept = top_k_top_p(logits, top_k_of(step.positions, sampling.top_k), sampling.top_p).isfinite()
        comparison.note("wrong codes", float((~kept.gather(-1, codes[..., None])).sum()), EXACT)
        comparison.check(f"s{scale:02d}.kept_mask", kept, EXACT, "kept codes")
        return codes

    def _vectors(self, scale: int, codes: Tensor, logits: Tensor, step: Step, sampling: Sampling) -> Tensor:
        """What codes become: a mix with the reference's noise, where it has some, or else themselves."""
        comparison, prefix, book = self.comparison, f"s{scale:02d}", self.vae.quantize.codebook
        if f"{prefix}.exp_noise" not in comparison.expected:
            return book[codes]
        ratio = progress(len(step.schedule))[step.positions.scale[0]]
        comparison.check(f"{prefix}.tau", gumbel_tau(ratio[:1]), CLOSE, relative=True)
        kept = top_k_top_p(logits, top_k_of(step.positions, sampling.top_k), sampling.top_p)
        tokens = gumbel_softmax(kept, ratio, comparison.take(f"{prefix}.exp_noise")) @ book
        comparison.check(f"{prefix}.h_BChw", tokens.transpose(1, 2), MIXED, "token vectors", relative=True)
        return tokens

    def checked_residual(self, prefix: str, hidden: Tensor, codes: Tensor, step: Step) -> Tensor:
        """Residuals (B, N, c) under the noise that the reference recorded; only the prompts' rows of it
        count."""
        take, rows = self.comparison.take, codes.numel()
        start, added = take(f"{prefix}.init_noise"), take(f"{prefix}.step_noise")
        noise = torch.cat(
            [start[None, :rows], added[:, :rows]]
        ).unflatten(1, codes.shape).permute(1, 2, 0, 3).flatten(2)
        z = self.transformer.residual_condition(hidden, self.vae.quantize.codebook[codes])
        self.comparison.check(f"{prefix}.z", z, CLOSE, "diffusion condition", relative=True)
        w = guidance_weights(step.guidance, len(step.schedule))[-1:]
        self.comparison.check(f"{prefix}.cfg", w, CLOSE, "diffusion guidance", relative=True)
        residual = self.draw_residual(hidden, codes, step, noise)
        if f"{prefix}.out" in self.comparison.expected:
            first_half(self.comparison, f"{prefix}.out", residual.flatten(0, 1), "diffusion")
        return residual

    def _several_passes(self, hidden: Tensor, logits: Tensor, step: Step) -> Tensor:
        """The last scale in passes; the reference numbers its own passes on behind the scales."""
        number, drawn = pass_of(self.order, self.passes), torch.zeros(*logits.shape[:2], self.channels)
        for n in range(self.passes):
            self.comparison.check(f"step{n}.todo", number == n, EXACT, "tokens of a pass")
            cells, name = (
                number == n
            ).nonzero()[:, 1].view(len(number), -1), f"s{len(step.schedule) - 1 + n:02d}"
            self.comparison.check(f"{name}.logits_cfg", _gather(logits, cells), CLOSE, relative=True)
            codes = self.comparison.take(f"{name}.idx").long()
            part = _gather(hidden, cells.repeat(len(hidden) // len(cells), 1))
            tokens = self.vae.quantize.codebook[codes] + self.checked_residual(f"diff{n}", part, codes, step)
            drawn.scatter_(1, cells[..., None].expand_as(tokens), tokens)
        return drawn


def _gather(x: Tensor, cells: Tensor) -> Tensor:
    """Chosen tokens of x (B, N, C); cells (B, n)."""
    return x.gather(1, cells[..., None].expand(-1, -1, x.shape[-1]))


def _probe(case: Golden, comparison: PeakComparison | None = None) -> Probe:
    comparison = comparison or case.comparison
    strides = case.meta.get("logits_token_stride", {})
    return Probe(case.transformer(), case.tokenizer(), comparison=comparison, strides=strides)


def _recipe(case: Golden, expected: Mapping[str, Tensor], greedy: bool = False) -> Recipe:
    """Features with their positions.  Guidance counts from 1 here, from 0 in the reference."""
    pairs = zip(expected["in.context"], expected["in.position_ids"].float(), strict=True)
    text = [PositionedText(features, positions) for features, positions in pairs]
    sampling = Sampling(1.0, 1 if greedy else 0, case.meta.get("top_p", 0.0))
    return Recipe(
        tuple(text), None, (0,) * len(text), case.schedule, Guidance(Ramp(1 + case.config["cfg"])), sampling
    )


def _run(case: Golden, probe: Probe, greedy: bool = False) -> None:
    """A picture, or as many of its scales as the reference has codes for."""
    comparison, expected = case.comparison, case.comparison.expected
    recipe, scales = _recipe(case, expected, greedy), len(case.schedule)
    known = [f"in.codes{n:02d}" in expected or f"s{n:02d}.idx" in expected for n in range(scales)]
    comparison.check("cond_BD", recipe.condition(probe).context, CLOSE, relative=True)
    comparison.check("lvl_rows", probe.transformer.levels(scales), CLOSE, relative=True)
    inputs: list[Tensor] = []

    def on_scale(done: int, _scales: int, total: Tensor) -> None:
        comparison.check(f"s{done - 1:02d}.f_hat", total, CLOSE, "sum of codes", relative=True)
        if done < scales:
            inputs.append(probe.tokens(total, case.schedule.grids[done]))

    draft, _ = draw_draft(probe, recipe, sum(known), on_scale=on_scale)
    comparison.check("var_input_BLCv", torch.cat(inputs, dim=1), CLOSE, "inputs", relative=True)
    comparison.check("final.f_hat", draft.total, DIFFUSED, relative=True)
    if "final.image01" in comparison.expected:
        comparison.check("final.image01", image01(probe.decode(draft.total)), DIFFUSED, relative=True)


def _teacher(case: Golden) -> None:
    _run(case, _probe(case))


def _greedy(case: Golden) -> None:
    _run(case, _probe(case), greedy=True)


def _maskgit(case: Golden) -> None:
    probe, expected = _probe(case), case.comparison.expected
    order = case.comparison.take("orders").long()
    for scale in range(len(case.schedule) - 1):  # the codes given there are told a second time
        case.comparison.check(f"s{scale:02d}.idx", expected[f"in.codes{scale:02d}"], EXACT, "given codes")
    _run(case, replace(probe, passes=case.meta["iters"], order=order))


def _subset(case: Golden) -> None:
    """Parts of the last two scales, each by itself and both at once, behind one draft."""
    probe, comparison, expected = _probe(case), case.comparison, case.comparison.expected
    recipe, first = _recipe(case, expected), len(case.schedule) - 2
    given = [probe.vae.quantize.codebook[expected[f"in.codes{n:02d}"].long()] for n in range(first)]
    draft, cache = draw_draft(probe, recipe, first, given)
    comparison.check("draft.f_hat", draft.total, CLOSE, relative=True)
    for name, held in zip("kv", cache.view(0), strict=True):
        comparison.check(f"cache.block0.{name}", held, CLOSE, "cache", relative=True)
    cells = [comparison.take(f"sel.scale{n}").long().expand(len(draft.total), -1) for n in (first, first + 1)]
    dispatch = Dispatch((first, first + 1), tuple(cells))
    run = Run(probe, recipe, recipe.condition(probe), cache)
    tokens, positions = refine_sequence(probe, draft, dispatch)
    by_scale = run.step(positions, store=False, visible=positions.scale[0].int())
    apart = probe.forward(tokens, by_scale)
    for n, scale in enumerate(dispatch.scales):
        part = slice(0, len(cells[0][0])) if n == 0 else slice(len(cells[0][0]), None)
        _band(comparison, run, f"scale{scale}", tokens[:, part], positions.part(part), apart[:, part])
    joint = probe.forward(tokens, run.step(positions, store=False))
    comparison.check("joint.hidden", joint, CLOSE, relative=True)
    comparison.check(
        "joint.logits_cfg", probe.logits(joint, run.step(positions, store=False)), CLOSE, relative=True
    )
    _fine_band(comparison, run, apart[:, part], positions.part(part))


def _band(
    comparison: PeakComparison, run: Run, name: str, tokens: Tensor, positions: Positions, hidden: Tensor
) -> None:
    probe, step = run.backbone, run.step(positions, store=False)
    x = probe.transformer.embed(tokens, positions.scale, run.condition, len(step.schedule))
    comparison.check(f"sep.{name}.x_in", x, CLOSE, "input", relative=True)
    places = torch.stack(coordinates(positions, step.schedule, run.condition.offset), dim=-1)
    comparison.check(f"pos2d.{name}", places, CLOSE, "positions", relative=True)
    comparison.check(f"sep.{name}.hidden", hidden, CLOSE, "hidden", relative=True)
    comparison.check(f"sep.{name}.logits_cfg", probe.logits(hidden, step), CLOSE, "logits_cfg", relative=True)


def _fine_band(comparison: PeakComparison, run: Run, hidden: Tensor, positions: Positions) -> None:
    """The last scale's residual, for the chosen tokens alone."""
    probe, codes = run.backbone, comparison.take("last.idx").long()
    residual = probe.checked_residual("last", hidden, codes, run.step(positions, store=False))
    comparison.check(
        "last.token", probe.vae.quantize.codebook[codes] + residual, DIFFUSED, "diffusion", relative=True
    )


def _fastvar(case: Golden) -> None:
    """Inputs are those of the teacher's case of the same configuration."""
    inputs = load_file(case.folder / f"{case.config['name']}_teacher.safetensors")
    given = {name: tensor for name, tensor in inputs.items() if name.startswith("in.")}
    # it collects in the same places
    comparison = replace(case.comparison, expected=given | case.comparison.expected)
    finish_fastvar(_probe(case, comparison), _recipe(case, inputs))


KINDS: dict[str, Callable[[Golden], None]] = {
    "teacher": _teacher,
    "greedy": _greedy,
    "smooth": _teacher,
    "maskgit": _maskgit,
    "subset": _subset,
    "fastvar": _fastvar,
    **PARTS,
}


def verify_files(folder: Path, manifest: Mapping[str, Any]) -> Iterator[Check]:
    """Run every case; yields one Check a quantity.

    Raises:
        ValueError: an unknown kind of case, a changed file, or expected tensors that nothing was compared
            with.
    """
    files, configs = manifest["files"], manifest["configs"]
    kinds = {name: Path(name).stem.rpartition("_")[2] for name in files}
    check_kinds(folder, kinds.values(), KINDS)
    for name, facts in files.items():
        stem, run = Path(name).stem, KINDS.get(kinds[name])
        config = configs.get(stem.rpartition("_")[0], {})
        case = partial(Golden, folder=folder, config=config, meta=facts.get("meta", {}))
        yield from run_case(folder / name, stem, facts, PeakComparison, run and partial(_on, run, case))


@torch.inference_mode()
def _on(run: Callable[[Golden], None], case: Callable[..., Golden], comparison: PeakComparison) -> None:
    run(case(comparison))
