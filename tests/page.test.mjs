/**
 * What the page computes for itself, against the numbers of the pipeline: node --test tests/page.test.mjs, by
 * tests/test_page.py.
 */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { decode } from "../js/decode.mjs";
import { band, boundsFromShares, counts, redrawnBy, shareOfDense } from "../js/dispatch.mjs";
import { readPainting, writePainting } from "../js/painting.mjs";
import { readPass, resample } from "../js/pass.mjs";
import { formatPicks, parsePicks, pick } from "../js/picks.mjs";
import { rankTokens } from "../js/ranks.mjs";
import { speak, translated } from "../js/words.mjs";

const vectors = JSON.parse(readFileSync(process.env.MOSS_VECTORS, "utf8"));

const SENTENCES = {
  "values 'x' is not a number; write 80, 70": "values 'x' 不是数；请写 80, 70",
  "/models/my files/m.pth is damaged; download it again": "/models/my files/m.pth 已损坏；请重新下载",
  "m.pth seems to be a HART transformer, not an Infinity transformer; choose another file":
    "m.pth 似乎是 HART Transformer，而不是 Infinity Transformer；请选择其他文件",
  [`for m.pth its VAE (v.pth, into models/vae), its text encoder (the folder t5, into models/text_encoders) ${
    ""}was not found; put it there, or choose it. Beside it lie a.pth, b.pth`]:
    "没有找到 m.pth 的 VAE（v.pth，放入 models/vae）, 文本编码器（文件夹 t5，放入 models/text_encoders）；" +
    "请放入该处，或手动选择。旁边有 a.pth, b.pth",
  "In about the time of a: b is most like the reference, but a has most of its texture. Slower, so not counted: c.":
    "与 a 用时相近者中：b 最接近参照，a 的纹理最接近参照。更慢因而不计：c。",
  "name  1.0\n\n12 tokens a picture": "name  1.0\n\n每张图 12 个 token",
};

test("the server's sentences in another language", () => {
  const { moss } = JSON.parse(readFileSync(new URL("../locales/zh/main.json", import.meta.url), "utf8"));
  const same = "m.pth is empty. Nothing was changed.";
  speak({});
  assert.equal(translated(same), same);
  speak(moss);
  for (const [sentence, said] of Object.entries(SENTENCES)) assert.equal(translated(sentence), said);
  for (const text of Object.keys(moss.sentences)) {
    const filled = text.replace(/\{(\w+)\}/g, "<$1>");
    const told = moss.sentences[text].replace(/\{(\w+)\}/g, "<$1>");
    assert.equal(translated(filled), told);
  }
});

test("bands of ranks", () => {
  for (const [tokens, upper, lower, start, stop] of vectors.bands) {
    assert.deepEqual(band(tokens, upper, lower), { start, stop: Math.max(start, stop) });
  }
});

test("bounds from shares", () => {
  for (const [shares, bounds] of vectors.shares) assert.deepEqual(boundsFromShares(shares), bounds);
});

test("paintings as text", () => {
  for (const [text, grid, cells] of vectors.paintings) {
    const painting = readPainting(text);
    assert.deepEqual([painting.grid, Array.from(painting.cells)], [grid, cells]);
    assert.equal(writePainting(painting), text);
  }
});

test("what the widgets of MoSs Token Dispatch mean", () => {
  for (const { widgets, known, left, planned, pass } of vectors.widgets) {
    const found = readPass(widgets, { known, left, planned });
    assert.deepEqual(found.problem ? null : found, pass, JSON.stringify(widgets));
  }
});

test("which drafts are picked", () => {
  for (const [text, count, picked] of vectors.picks) {
    assert.deepEqual(parsePicks(text, count), picked, text);
    if (picked) assert.deepEqual(parsePicks(formatPicks(picked), count), picked);
  }
  assert.deepEqual(pick([0], 2, false), [2]);
  assert.deepEqual(pick([0, 3], 2, true), [0, 2, 3]);
  assert.deepEqual(pick([0, 3], 0, true), [3]);
  assert.deepEqual(pick([3], 3, true), [3]);
});

test("bounds for another number of scales share the tokens out alike", () => {
  assert.deepEqual(resample([80, 70, 30, 10], 4), [80, 70, 30, 10]);
  assert.deepEqual(resample([80, 70, 30, 10], 2), [80, 30]);
  assert.deepEqual(resample([45], 3), [45, 30, 15]);
  for (const [tokens] of vectors.bands.slice(0, 50)) {
    const bounds = [100, 60, 60, 0].map((bound) => (bound * tokens) / 9000);
    for (let k = 1; k < 9; k += 1) {
      const found = resample(bounds, k);
      assert.equal(found.length, k);
      assert.ok(found.every((bound, i) => bound <= (found[i - 1] ?? 100) && bound >= 0));
    }
  }
});

test("ranks, places, counts and the share of dense", () => {
  for (const { payload, painting, scales, bounds, tokens, taken, share } of vectors.dispatches) {
    const inspection = decode(payload);
    const { final, left } = inspection;
    const places = scales.map((scale) => left.indexOf(scale));
    const pick = (list) => places.map((place) => list[place]);
    const [grids, open] = [pick(inspection.grids), pick(inspection.open)];
    assert.deepEqual(inspection.ran, { scales, bounds });
    const refined = counts(open, bounds);
    const sum = refined.reduce((a, b) => a + b, 0);
    assert.deepEqual(refined, tokens);
    assert.equal(shareOfDense(inspection.work, inspection.draftTokens, sum), share);
    inspection.pictures.forEach((picture, n) => {
      const { ranks: all } = picture;
      assert.deepEqual(rankTokens(inspection, picture, readPainting(painting)), all);
      const ranks = places.map((place) => all[place]);
      for (let row = 0; row < final[0]; row += 1) {
        for (let column = 0; column < final[1]; column += 1) {
          const found = redrawnBy({ grids, open, ranks, bounds }, final, { row, column });
          assert.deepEqual(found, taken[n][row][column]);
        }
      }
    });
  }
});
