// What a region costs: the arithmetic of TokenLayout in rope_core/mixed/regions.py.

import { countCells } from "./raster.mjs"
import { say } from "../words/words.mjs"

/**
 * What a region is for. ratio, its margin and the bands of Boundary Expand-Replace in cells, as the nodes behind it say; the model's width and
 * its text tokens as the last run told, or Flux.1's: then `told` is false.
 */
export const UNKNOWN_MODEL = { ratio: 2, outer: 0, inner: 0, margin: 0, hidden: 3072, text: 256, told: false }

/**
 * Shares of area, of the margin where there is one, and of tokens, and the predicted speed-up of a mixed step; nothing where too much is
 * drawn to count.
 */
export function predict(shapes, picture, { ratio, outer, inner, margin = 0, hidden, text } = UNKNOWN_MODEL, start = null) {
  const counted = countCells(shapes, picture, { start, outer: margin || outer, inner })
  if (!counted) return null
  const { inside, cells } = counted
  const full = cells * ratio ** 2
  const { tokens, scores } = margin ? ofThreeLevels(counted, text) : ofTwoLevels(counted, ratio, text)
  const cost = (tokens, scores) => 6 * hidden * tokens + scores
  const speedup = cost(full + text, (full + text) ** 2) / cost(tokens + text, scores)
  return { area: inside / cells, tokens: tokens / full, speedup, ...(margin && { margin: counted.outer / cells }) }
}

/** Tokens and query-key products of a mixed step: full resolution inside, 1/ratio outside, both in the bands. */
function ofTwoLevels({ inside, cells, outer, inner }, ratio, text) {
  const low = cells - inside + inner
  const high = (inside + outer) * ratio ** 2
  const lowKeys = text + low + inside - inner
  const highKeys = text + cells - inside - outer + high
  return { tokens: low + high, scores: low * lowKeys + (text + high) * highKeys }
}

/** Full resolution inside, half in the margin, a quarter outside; of finer levels a token sees those on its own grid. */
function ofThreeLevels({ inside, cells, outer }, text) {
  const [low, middle, high] = [cells - inside - outer, 4 * outer, 16 * inside]
  const coarser = text + low + middle
  const scores = low * (text + cells) + middle * (coarser + 4 * inside) + (text + high) * (coarser + high)
  return { tokens: low + middle + high, scores }
}

export function inWords(predicted, { outer, inner, told } = UNKNOWN_MODEL) {
  if (!predicted) return say("Too much is drawn to reckon with here; the node reckons when it runs.")
  const { area, margin, tokens, speedup } = predicted
  if (area === 1) return say("The region is the whole picture, so there is nothing to save.")
  const percent = (share) => `${Math.round(100 * share)} %`
  const values = { area: percent(area), margin: percent(margin), tokens: percent(tokens), speedup: speedup.toFixed(1) }
  const bands = outer || inner ? say(", bands included") : ""
  const whose = told ? "" : say(" (on Flux.1; on this model after a run)")
  const shares = margin
    ? say("{area} of the area + {margin} at half resolution, {tokens} of the tokens", values)
    : say("{area} of the area, {tokens} of the tokens", values)
  return shares + bands + say(", about {speedup}× faster", values) + whose
}
