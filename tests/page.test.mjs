/** What the page computes for itself, against the numbers of the pipeline: node --test tests/page.test.mjs, by tests/test_page.py. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { decode } from "../js/decode.mjs";
import { band, boundsFromShares, counts, redrawnBy, shareOfDense } from "../js/dispatch.mjs";
import { readPainting, writePainting } from "../js/painting.mjs";
import { rankTokens } from "../js/ranks.mjs";

const vectors = JSON.parse(readFileSync(process.env.MOSS_VECTORS, "utf8"));

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

test("ranks, places, counts and the share of dense", () => {
  for (const { payload, painting, bounds, tokens, taken, share } of vectors.dispatches) {
    const inspection = decode(payload);
    const { grids, final } = inspection;
    const refined = counts(grids, bounds);
    assert.deepEqual(refined, tokens);
    assert.equal(shareOfDense(inspection.work, inspection.draftTokens, refined.reduce((a, b) => a + b, 0)), share);
    inspection.pictures.forEach(({ frequency, ranks }, n) => {
      assert.deepEqual(rankTokens(frequency, final, grids, readPainting(painting)), ranks);
      for (let row = 0; row < final[0]; row += 1) {
        for (let column = 0; column < final[1]; column += 1) {
          const found = redrawnBy(grids, ranks, bounds, final, { row, column });
          assert.deepEqual(found, taken[n][row][column]);
        }
      }
    });
  }
});
