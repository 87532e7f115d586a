// What a region costs: the arithmetic of TokenLayout in rope_core/regions.py, without bands.

import { countCells } from "./raster.mjs"

const RATIO = 2
const HIDDEN = 3072 // Flux.1, as nodes/region_mask.py assumes
const TEXT = 512

/** Shares of area and tokens, and the predicted speed-up of a mixed step; nothing where too much is drawn to count. */
export function predict(shapes, picture) {
  const counted = countCells(shapes, picture)
  if (!counted) return null
  const { inside, cells } = counted
  const low = cells - inside
  const high = inside * RATIO ** 2
  const full = cells * RATIO ** 2
  const lowKeys = TEXT + low + inside
  const highKeys = TEXT + low + high
  const cost = (tokens, scores) => 6 * HIDDEN * tokens + scores
  const mixed = cost(low + high + TEXT, low * lowKeys + (TEXT + high) * highKeys)
  return { area: inside / cells, tokens: (low + high) / full, speedup: cost(full + TEXT, (full + TEXT) ** 2) / mixed }
}

export function inWords(predicted) {
  if (!predicted) return "Too much is drawn to reckon with here; the node reckons when it runs."
  const { area, tokens, speedup } = predicted
  const percent = (share) => `${Math.round(100 * share)} %`
  return `${percent(area)} of the area, ${percent(tokens)} of the tokens, about ${speedup.toFixed(1)}× faster`
}
