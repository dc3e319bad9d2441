"""Every Triton kernel against its torch twin: compiled on a CUDA device, else in Triton's interpreter on the
CPU.

The rule: measured against the twin in float64, a kernel may err at most twice as much as the twin does in the
same dtype.
"""

from __future__ import annotations

import importlib.util
import inspect
import math
import os
import sys
from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import torch
from builders import tiny_backbone
from torch import Tensor

from comfy_moss import ops
from comfy_moss.kernels import reference
from comfy_moss.model.cache import KVCache
from comfy_moss.model.sampling import Guidance
from comfy_moss.model.schedule import make_schedule
from comfy_moss.ops import TORCH, Kernels
from comfy_moss.pipeline.dispatch import RefinePass, dispatch_tokens
from comfy_moss.pipeline.draft import Recipe, draw_draft
from comfy_moss.pipeline.fastvar import FastVARConfig, finish_fastvar
from comfy_moss.pipeline.frequency import frequency_map
from comfy_moss.pipeline.refine import refine

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
# The interpreter truncates to bfloat16 instead of rounding, and multiplies such matrices wrongly.
DTYPES = [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)] + (
    [] if CUDA else [torch.float32]
)
OPERATIONS = [field.name for field in fields(Kernels) if field.name != "name"]
SCHEDULE = make_schedule(1.0, "0.06M")
allocate = torch.empty
pytestmark = [pytest.mark.gpu] if CUDA else []  # on a GPU all of this is about the GPU

if importlib.util.find_spec("triton") is None:
    pytest.skip(
        "NO TRITON KERNEL IS TESTED: triton is not installed (it needs no GPU for this)",
        allow_module_level=True,
    )
if not CUDA and "triton" in sys.modules and not os.environ.get("TRITON_INTERPRET"):
    pytest.skip(
        "NO TRITON KERNEL IS TESTED: triton was imported before; run this file alone", allow_module_level=True
    )
if not CUDA:
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton and the kernels are imported, which is later


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Kernels:
    """Every Triton kernel; what they allocate is full of NaN, so that an element they forget to write shows.
    """
    found = ops.triton_kernels()
    for name in ("empty", "empty_like"):
        monkeypatch.setattr(
            torch, name, lambda *args, _real=getattr(torch, name), **kw: spoiled(_real(*args, **kw))
        )
    return found


def spoiled(memory: Tensor) -> Tensor:
    """Memory that shows whoever reads it before it is written."""
    return memory.fill_(math.nan if memory.is_floating_point() else 127)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator).to(DEVICE, dtype)


def in_double(value: object) -> object:
    if isinstance(value, (tuple, list)):
        parts = [in_double(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def assert_as_exact_as_torch(
    kernel: Callable, twin: Callable, *args: object, dtype: torch.dtype | None = None
) -> None:
    """The rule.  dtype: also give this output dtype to both, and float64 to the exact one."""
    extra = () if dtype is None else (dtype,)
    exact = twin(*in_double(args), *(() if dtype is None else (torch.float64,)))
    torchs, ours = twin(*args, *extra), kernel(*args, *extra)
    for right, theirs, mine in zip(
        *(x if isinstance(x, tuple) else (x,) for x in (exact, torchs, ours)), strict=True
    ):
        assert mine.shape == theirs.shape and mine.dtype == theirs.dtype
        # sums in another order, as NumPy's on another processor may be
        rounding = 8 * torch.finfo(torch.float32).eps * right.abs().max()
        assert (mine.double() - right).abs().max() <= 2 * (theirs.double() - right).abs().max() + rounding


def packed(
    tokens: int, size: int, dtype: torch.dtype, rows: int = 2, tables: int | None = None
) -> tuple[Tensor, ...]:
    """Arguments of cosine_rope2d: three heads, one of them with a scale that is clamped."""
    angles = 3 * random(tables or rows, tokens, size // 2)
    log_scale = torch.tensor([0.3, 1.4, 5.0], device=DEVICE)
    return random(rows, tokens, 3, 3, size, dtype=dtype), log_scale, angles.cos(), angles.sin()


def heads(
    tokens: int, past: int, size: int, dtype: torch.dtype, rows: int = 2, count: int = 2
) -> tuple[Tensor, tuple]:
    """Queries, and two segments as the model has them: places in a larger cache, and new tokens with packed
    values.
    """
    k, v = random(2, rows, count, past + 5, size, dtype=dtype)[:, :, :, :past]
    qkv = random(rows, tokens, 3, count, size, dtype=dtype).transpose(1, 3).unbind(2)
    return 1.5 * qkv[0], ((k, v), (qkv[1].contiguous(), qkv[2]))


def scale_of(tokens: int) -> Tensor:
    """Three scales, coarsest first, as in a refine step."""
    return (torch.arange(tokens, device=DEVICE) * 3 // tokens).int()


# --- rope2d -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tokens", "size"), [(1, 32), (64, 64), (67, 96), (67, 128)])
def test_queries_and_keys_are_normalised_scaled_and_rotated(kernels, tokens, size, dtype):
    assert_as_exact_as_torch(kernels.cosine_rope2d, reference.cosine_rope2d, *packed(tokens, size, dtype))


def test_one_rotary_table_serves_all_rows(kernels):
    assert_as_exact_as_torch(
        kernels.cosine_rope2d, reference.cosine_rope2d, *packed(9, 32, torch.float16, rows=3, tables=1)
    )


def test_log_scales_may_be_of_the_weights_dtype(kernels):
    qkv, log_scale, *tables = packed(9, 32, torch.float16)

    assert_as_exact_as_torch(kernels.cosine_rope2d, reference.cosine_rope2d, qkv, log_scale.half(), *tables)


def test_a_head_of_zeros_stays_zero(kernels):
    qkv, *rest = packed(3, 32, torch.float16)

    q, k, _ = kernels.cosine_rope2d(torch.zeros_like(qkv), *rest)

    assert not q.any() and not k.any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_keys_and_values_go_straight_into_their_places_in_the_cache(kernels, dtype):
    args = packed(19, 96, dtype)
    cache = KVCache([40], 2, 3, 96, dtype, DEVICE)
    cache.lengths = [4]

    q, k, v = kernels.cosine_rope2d(*args, cache.room(0, 19))
    cache.append(0, k, v)

    expected = kernels.cosine_rope2d(*args)
    assert all(torch.equal(a, b) for a, b in zip((q, k, v), expected, strict=True))
    assert all(torch.equal(a[:, :, 4:], b) for a, b in zip(cache.view(0), expected[1:], strict=True))
    assert cache.layers[0][:, :, :, :4].isnan().all() and cache.layers[0][:, :, :, 23:].isnan().all()


# --- attention ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lengths", [(1, 1), (1, 67), (64, 64), (67, 0), (67, 131)], ids=str)
@pytest.mark.parametrize("size", [32, 96])
def test_attention_reads_both_segments(kernels, lengths, size, dtype):
    q, segments = heads(*lengths, size, dtype)

    assert_as_exact_as_torch(kernels.cross_scale_attention, reference.cross_scale_attention, q, segments)


@pytest.mark.parametrize("size", [16, 64, 128])
def test_attention_takes_heads_of_any_usual_size(kernels, size):
    q, segments = heads(9, 70, size, torch.float16)

    assert_as_exact_as_torch(kernels.cross_scale_attention, reference.cross_scale_attention, q, segments)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tokens", "past"), [(1, 21), (67, 0), (130, 21)])
def test_in_the_ablation_a_token_sees_the_cache_and_its_own_scale(kernels, tokens, past, dtype):
    q, segments = heads(tokens, past, 32, dtype)
    args = q, segments, scale_of(tokens), 0.7

    assert_as_exact_as_torch(kernels.cross_scale_attention, reference.cross_scale_attention, *args)


@pytest.mark.parametrize("scales", [False, True])
def test_one_segment_holds_the_cache_and_the_new_tokens(kernels, scales):
    q, (past, _) = heads(20, 71, 32, torch.float16)
    args = q, (past,), scale_of(20) if scales else None

    assert_as_exact_as_torch(kernels.cross_scale_attention, reference.cross_scale_attention, *args)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tokens", "past", "size"), [(1, 67, 32), (67, 131, 96), (9, 70, 128), (5, 0, 32)])
@pytest.mark.parametrize("scales", [False, True])
def test_attention_reads_a_cache_in_8_bits(kernels, tokens, past, size, dtype, scales):
    """Scales that differ a thousandfold from token to token and from head to head, as places in memory."""
    q, ((k, v), new) = heads(tokens, past + 3, size, dtype)
    spread = torch.logspace(-2, 1, 2 * (past + 3), device=DEVICE).view(1, 2, -1, 1)
    (k, k_scale), (v, v_scale) = (reference.quantize_int8(part * spread) for part in (k, v))
    segment = reference.Int8Segment(*(part[:, :, :past] for part in (k, v, k_scale, v_scale)))
    args = q, (segment, new), scale_of(tokens) if scales else None, 0.7

    assert_as_exact_as_torch(kernels.cross_scale_attention, reference.cross_scale_attention, *args)


def test_any_other_mask_is_left_to_torch(kernels):
    q, segments = heads(20, 7, 32, torch.float16)
    mask = torch.ones(1, 20, 20, dtype=torch.bool, device=DEVICE).tril()

    ours, torchs = (kind.cross_scale_attention(q, segments, mask) for kind in (kernels, TORCH))

    assert torch.equal(ours, torchs) and not torch.equal(ours, TORCH.cross_scale_attention(q, segments))


def test_scores_far_from_zero_neither_overflow_nor_vanish(kernels):
    """Queries of length 100, the largest a head may have: one key takes everything, in the first block or in
    a later one.
    """
    k = torch.eye(128, device=DEVICE).half()[None, None]
    q = 100 * k[:, :, [3, 100]]

    out = kernels.cross_scale_attention(-q, ((k, k), (k[:, :, :2], k[:, :, :2])))
    peaked = kernels.cross_scale_attention(q, ((k, k), (k[:, :, 126:], k[:, :, 126:])))

    assert torch.equal(peaked, k[:, :, [3, 100]])
    assert out.isfinite().all() and out[0, 0, 0, 3] == 0 and out[0, 0, 1, 100] == 0


def test_the_result_lies_as_the_output_projection_reads_it(kernels):
    q, segments = heads(5, 7, 32, torch.float16)

    assert kernels.cross_scale_attention(q, segments).transpose(1, 2).is_contiguous()


@pytest.mark.parametrize(("tokens", "past"), [(988, 921), pytest.param(1613, 1497, marks=pytest.mark.gpu)])
def test_attention_at_the_lengths_of_moss5_and_moss4(kernels, tokens, past):
    rows, count, size = (2, 16, 128) if CUDA else (1, 1, 32)

    q, segments = heads(tokens, past, size, torch.float16, rows, count)

    assert_as_exact_as_torch(kernels.cross_scale_attention, reference.cross_scale_attention, q, segments)
    assert_as_exact_as_torch(
        kernels.cross_scale_attention, reference.cross_scale_attention, q, segments, scale_of(tokens)
    )


# --- norms and the gated add --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tokens", "width"), [(1, 32), (5, 96), (3, 2048), (2, 3584)])
def test_norms_and_gated_add(kernels, tokens, width, dtype):
    x = 3 * random(2, tokens, width) + 1
    vectors = random(2, 1, 6, width)  # adaLN's, strided as the blocks have them
    weight, bias = random(2, width, dtype=dtype)
    y = random(2, tokens, width, dtype=dtype)

    norm = kernels.modulated_norm, reference.modulated_norm, x, vectors[:, :, 2], vectors[:, :, 4]
    affine = kernels.affine_norm, reference.affine_norm, x, weight, bias
    assert_as_exact_as_torch(*norm, dtype=dtype)
    assert_as_exact_as_torch(*affine, dtype=dtype)
    assert_as_exact_as_torch(kernels.gated_add, reference.gated_add, x, vectors[:, :, 1], y)
    assert (
        kernels.modulated_norm(*norm[2:]).dtype == x.dtype
        and kernels.affine_norm(*affine[2:]).dtype == x.dtype
    )


def test_a_token_of_equal_channels_is_normed_to_its_shift(kernels):
    """Its variance is 0, and only eps keeps the result finite; channels beyond the width must not count."""
    x, vectors = torch.full((1, 2, 96), 7.0, device=DEVICE), random(1, 2, 96)

    out = kernels.modulated_norm(x, vectors[:, :1], vectors[:, 1:])

    assert torch.allclose(out, vectors[:, 1:].expand_as(out), atol=0.01)


# --- the residual add with the norm behind it ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "plain"])
@pytest.mark.parametrize("modulated", [True, False], ids=["modulated", "affine"])
def test_the_add_and_its_norm_are_as_exact_as_torch(kernels, dtype, gated, modulated):
    x, update, vectors = random(2, 7, 48), random(2, 7, 48, dtype=dtype), random(2, 3, 48)
    gain, shift = (vectors[:, 1:2], vectors[:, 2:]) if modulated else random(2, 48, dtype=dtype)
    args = (x, update, vectors[:, :1] if gated else None, gain, shift, modulated)
    assert_as_exact_as_torch(kernels.add_norm, TORCH.add_norm, *args, dtype=dtype)


# --- parts of attention -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "size"), [(1, 16), (17, 32), (33, 48)])
def test_merging_is_as_exact_as_torch(kernels, dtype, tokens, size):
    parts = random(2, 2, tokens, 3, size, dtype=dtype).transpose(2, 3), 3 * random(2, 2, 3, tokens)
    first, second = zip(*parts, strict=True)
    assert_as_exact_as_torch(kernels.merge_attention, TORCH.merge_attention, first, second)


# --- GroupNorm and SiLU -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("channels", "groups"), [(32, 32), (48, 24), (96, 32), (128, 32)])
@pytest.mark.parametrize("grid", [(1, 1), (9, 7), (16, 16)])
def test_group_norm_is_as_exact_as_torch(kernels, monkeypatch, dtype, channels, groups, grid):
    from comfy_moss.kernels import group_norm

    x = (3 + 2 * random(2, channels, *grid)).to(dtype).contiguous(memory_format=torch.channels_last)
    args = (x, groups, random(channels, dtype=dtype), random(channels, seed=1, dtype=dtype))
    assert_as_exact_as_torch(kernels.group_norm_silu, TORCH.group_norm_silu, *args)
    monkeypatch.setattr(group_norm, "ELEMENTS", 512), monkeypatch.setattr(group_norm, "PARTS", 3)
    assert_as_exact_as_torch(kernels.group_norm_silu, TORCH.group_norm_silu, *args)  # of many parts and turns
    assert kernels.group_norm_silu(*args).is_contiguous(memory_format=torch.channels_last)


# --- every kernel -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_kernel_takes_what_its_twin_takes(kernels, operation):
    ours, torchs = (inspect.signature(getattr(kind, operation)).parameters for kind in (kernels, TORCH))

    assert [(p.name, p.default) for p in ours.values()][: len(torchs)] == [
        (p.name, p.default) for p in torchs.values()
    ]
    assert all(p.default is None for p in [*ours.values()][len(torchs) :])


@pytest.fixture
def far_apart() -> Callable[[Tensor], Tensor]:
    """Copies a tensor (3, ...) so that its rows lie 2^30 elements apart: the third's offset does not fit 32
    bits.

    Nothing is behind the memory in between, so it costs nothing on the CPU.  The rows lie in the middle of
    it, so that an offset that wraps around finds foreign numbers there and not the end of the program.
    """
    memory = []

    def copy(x: Tensor) -> Tensor:
        try:
            memory.append(allocate(2**32 + 2**20, dtype=x.dtype, device=x.device))
        except RuntimeError:
            pytest.skip(f"no room for {2**32 * x.element_size() / 2**30:.0f} GiB")
        return memory[-1][2**31 :].as_strided(x.shape, (2**30 + 64, *x.stride()[1:])).copy_(x)

    return copy


def test_attention_reaches_beyond_2_to_the_31_elements(kernels, far_apart):
    q, ((k, v), new) = heads(4, 8, 32, torch.float16, rows=3, count=2)
    k, v = k.contiguous(), v.contiguous()
    expected = kernels.cross_scale_attention(q, ((k, v), new))
    far = far_apart(k)

    assert torch.equal(kernels.cross_scale_attention(q, ((far, v), new)), expected)
    far.copy_(v)
    assert torch.equal(kernels.cross_scale_attention(q, ((k, far), new)), expected)
    far.copy_(k)
    twice = kernels.cross_scale_attention(q, ((k, v), (k, v)))
    assert torch.equal(kernels.cross_scale_attention(q, ((k, v), (far, v))), twice)
    far.copy_(v)
    assert torch.equal(kernels.cross_scale_attention(q, ((k, v), (k, far))), twice)


def test_rope2d_reaches_beyond_2_to_the_31_elements(kernels, far_apart):
    qkv, *rest = packed(8, 32, torch.float16, rows=3)
    q, k, v = kernels.cosine_rope2d(qkv, *rest)
    place = torch.empty_like(k)
    far = far_apart(qkv)

    read = kernels.cosine_rope2d(far, *rest)
    assert torch.equal(read[0], q) and torch.equal(read[1], k)
    written = far.as_strided(k.shape, (far.stride(0), *k.stride()[1:]))
    assert torch.equal(kernels.cosine_rope2d(qkv, *rest, (written, place))[1], k) and torch.equal(place, v)
    assert torch.equal(kernels.cosine_rope2d(qkv, *rest, (place, written))[2], v) and torch.equal(place, k)


def test_norms_and_gated_add_reach_beyond_2_to_the_31_elements(kernels, far_apart):
    x, vector = random(3, 4, 32).half(), random(3, 1, 32)
    far = far_apart(x)

    assert torch.equal(kernels.modulated_norm(far, vector, vector), kernels.modulated_norm(x, vector, vector))
    assert torch.equal(
        kernels.affine_norm(far, vector[0, 0], vector[0, 0]),
        kernels.affine_norm(x, vector[0, 0], vector[0, 0]),
    )
    assert torch.equal(kernels.gated_add(far, vector, x), kernels.gated_add(x, vector, x))
    assert torch.equal(kernels.gated_add(x, vector, far), kernels.gated_add(x, vector, x))


# --- in the model -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("int8", [False, True], ids=["", "int8"])
@pytest.mark.parametrize("method", ["refine", "ablation", "fastvar"])
def test_a_model_computes_the_same_with_either_kernels(kernels, method, int8):
    model = replace(tiny_backbone(), int8_cache=int8)
    model.transformer.to(DEVICE), model.vae.to(DEVICE)
    recipe = Recipe((random(4, 32),), None, (0,), SCHEDULE, Guidance(1.0))
    hidden, bits = {"torch": [], "triton": []}, ()
    for backbone in (model, replace(model, kernels=kernels)):
        seen = hidden[backbone.kernels.name]
        hook = model.transformer.register_forward_hook(lambda _, __, out, seen=seen: seen.append(out))
        if method == "fastvar":
            whole = finish_fastvar(backbone, recipe, FastVARConfig(first_layer=1), bits)[0].bits
            bits = whole[:-1]  # the last scale, if known, would leave nothing to compute
        else:
            draft, cache = draw_draft(backbone, recipe, 4, bits)
            made_by = RefinePass.of_last((50.0, 20.0, 5.0), cross_scale=method == "refine")
            refine(
                backbone, draft, dispatch_tokens(frequency_map(draft.total), SCHEDULE, made_by), made_by,
                cache,
            )
            bits = draft.bits  # so that both see the same input, whatever a close call among the bits
        hook.remove()

    assert len(hidden["torch"]) == len(hidden["triton"]) == 5
    for torchs, ours in zip(*hidden.values(), strict=True):
        assert torch.allclose(ours, torchs, atol=1e-4) and torchs.abs().max() > 1
