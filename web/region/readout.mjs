// What a region costs: the arithmetic of TokenLayout in rope_core/mixed/regions.py.

import { countCells } from "./raster.mjs"
import { say } from "../words/words.mjs"

/**
 * What a region is for. ratio, and the bands of Boundary Expand-Replace in cells, as the nodes behind it say; the model's width and its text
 * tokens as the last run told, or Flux.1's: then `told` is false.
 */
export const UNKNOWN_MODEL = { ratio: 2, outer: 0, inner: 0, hidden: 3072, text: 256, told: false }

/** Shares of area and tokens, and the predicted speed-up of a mixed step; nothing where too much is drawn to count. */
export function predict(shapes, picture, { ratio, outer, inner, hidden, text } = UNKNOWN_MODEL, start = null) {
  const counted = countCells(shapes, picture, { start, outer, inner })
  if (!counted) return null
  const { inside, cells } = counted
  const low = cells - inside + counted.inner
  const high = (inside + counted.outer) * ratio ** 2
  const full = cells * ratio ** 2
  const lowKeys = text + low + inside - counted.inner
  const highKeys = text + cells - inside - counted.outer + high
  const cost = (tokens, scores) => 6 * hidden * tokens + scores
  const mixed = cost(low + high + text, low * lowKeys + (text + high) * highKeys)
  return { area: inside / cells, tokens: (low + high) / full, speedup: cost(full + text, (full + text) ** 2) / mixed }
}

export function inWords(predicted, { outer, inner, told } = UNKNOWN_MODEL) {
  if (!predicted) return say("Too much is drawn to reckon with here; the node reckons when it runs.")
  const { area, tokens, speedup } = predicted
  if (area === 1) return say("The region is the whole picture, so there is nothing to save.")
  const percent = (share) => `${Math.round(100 * share)} %`
  const values = { area: percent(area), tokens: percent(tokens), speedup: speedup.toFixed(1) }
  const bands = outer || inner ? say(", bands included") : ""
  const whose = told ? "" : say(" (on Flux.1; on this model after a run)")
  return say("{area} of the area, {tokens} of the tokens", values) + bands + say(", about {speedup}× faster", values) + whose
}
