// Drawn regions as they travel in a workflow. rope_core/region_document.py reads the same and explains it.

import { say } from "../words/words.mjs"

export const VERSION = 1
export const LIMITS = { characters: 500000, shapes: 64, keys: 64, points: 2000, name: 64, radius: 0.5 }
const TOLERANCE = 1e-4 // how far rounding may push a shape over the picture's edge
const DIGITS = 5 // 1e-5 of the largest picture is a sixth of a pixel
const AREA = ["x", "y", "width", "height"]

export class RegionError extends Error {}

function refuse(text) {
  throw new RegionError(text)
}

/** The shapes that `text` holds; none for an empty text. Throws RegionError for anything else than a document. */
export function parseRegions(text) {
  if (typeof text !== "string") refuse(say("regions are {found}: expected a text.", { found: shown(text) }))
  if (text.length > LIMITS.characters && [...text].length > LIMITS.characters)
    refuse(say("regions are {count} characters long: expected at most {most}.", { count: text.length, most: LIMITS.characters }))
  if (/^[ \t\r\n]*$/.test(text)) return []
  let found
  try {
    found = JSON.parse(text)
  } catch {
    refuse(say("regions are no JSON."))
  }
  if (!isObject(found)) refuse(say("regions are {found}: expected an object with version and shapes.", { found: shown(found) }))
  if (found.version !== VERSION) {
    const versions = { found: shown(found.version), known: VERSION }
    refuse(say("regions: version is {found}: expected {known}. Update RoPE Works, or draw anew.", versions))
  }
  only("regions", found, ["version", "shapes"])
  const shapes = listed("regions", found, "shapes", 0, LIMITS.shapes)
  return shapes.map((shape, index) => readShape(say("shape {number}", { number: index + 1 }), shape))
}

/** The text for a list of shapes, with numbers short enough to read, or in full where rounding would leave nothing of a shape. */
export function serialiseRegions(shapes) {
  if (!shapes.length) return ""
  const rounded = (_, value) => (typeof value === "number" ? Number(value.toFixed(DIGITS)) : value)
  const found = { version: VERSION, shapes }
  const text = JSON.stringify(found, rounded)
  return text.length > LIMITS.characters || isReadable(text) ? text : JSON.stringify(found)
}

function isReadable(text) {
  try {
    parseRegions(text)
    return true
  } catch (error) {
    if (error instanceof RegionError) return false
    throw error
  }
}

function readShape(where, found) {
  if (!isObject(found)) refuse(say("{where} of the regions is {found}: expected an object.", { where, found: shown(found) }))
  const name = "name" in found ? found.name : ""
  if (typeof name !== "string" || [...name].length > LIMITS.name) {
    const fields = { where, found: shown(name), most: LIMITS.name }
    refuse(say("{where}: name is {found}: expected a text of at most {most} characters.", fields))
  }
  const named = name ? `${where} (${shown(name)})` : where
  if (found.kind === "box" || found.kind === "ellipse") return readAreaShape(named, found, name)
  if (found.kind === "brush") return readStroke(named, found, name)
  refuse(say("{where}: kind is {found}: expected one of box, ellipse, brush.", { where: named, found: shown(found.kind) }))
}

function readAreaShape(where, found, name) {
  only(where, found, ["kind", "name", ...AREA, "keys"])
  const keys = []
  const given = "keys" in found ? listed(where, found, "keys", 0, LIMITS.keys) : []
  given.forEach((key, index) => {
    const atKey = say("{where}, key {number}", { where, number: index + 1 })
    if (!isObject(key)) refuse(say("{where} is {found}: expected an object.", { where: atKey, found: shown(key) }))
    only(atKey, key, ["at", ...AREA])
    const at = number(atKey, key, "at", 0, 1)
    const before = keys[index - 1]?.at
    if (at <= before) refuse(say("{where}: at is {at}: expected more than {before} of the key before.", { where: atKey, at, before }))
    keys.push({ at, ...readArea(atKey, key) })
  })
  return { kind: found.kind, name, ...readArea(where, found), ...(keys.length ? { keys } : {}) }
}

function readStroke(where, found, name) {
  only(where, found, ["kind", "name", "radius", "points", "erase"])
  const erase = "erase" in found ? found.erase : false
  if (typeof erase !== "boolean") refuse(say("{where}: erase is {found}: expected true or false.", { where, found: shown(erase) }))
  const radius = number(where, found, "radius", 0, LIMITS.radius, true)
  const points = listed(where, found, "points", 1, LIMITS.points).map((point, index) => readPoint(where, point, index))
  return { kind: "brush", name, radius, points, erase }
}

function readPoint(where, found, index) {
  const isPoint = Array.isArray(found) && found.length === 2
  // Most points are, and there are thousands: only for others it is worth saying where they stand.
  if (isPoint && found.every((value) => typeof value === "number" && value >= 0 && value <= 1)) return found
  const atPoint = say("{where}, point {number}", { where, number: index + 1 })
  if (!isPoint) refuse(say("{where} is {found}: expected [x, y].", { where: atPoint, found: shown(found) }))
  return found.map((value, axis) => number(atPoint, { [AREA[axis]]: value }, AREA[axis], 0, 1))
}

function readArea(where, found) {
  const [x, y] = ["x", "y"].map((name) => number(where, found, name, 0, 1))
  const [width, height] = ["width", "height"].map((name) => number(where, found, name, 0, 1, true))
  for (const [start, size, name] of [[x, width, "x + width"], [y, height, "y + height"]])
    if (start + size > 1 + TOLERANCE || start >= 1)
      refuse(say("{where}: {name} is {found}: expected at most 1, inside the picture.", { where, name, found: start + size }))
  return { x, y, width: Math.min(width, 1 - x), height: Math.min(height, 1 - y) }
}

function number(where, found, name, low, high, above = false) {
  const value = Object.hasOwn(found, name) ? found[name] : undefined
  const fits = typeof value === "number" && value >= low - TOLERANCE && value <= high + TOLERANCE
  if (!fits || (above && value <= low)) {
    const fields = { where, name, found: shown(value), low, high }
    if (above) refuse(say("{where}: {name} is {found}: expected a number above {low}, up to {high}.", fields))
    refuse(say("{where}: {name} is {found}: expected a number from {low} to {high}.", fields))
  }
  return Math.min(Math.max(value, low), high)
}

function listed(where, found, name, fewest, most) {
  const value = Object.hasOwn(found, name) ? found[name] : undefined
  if (!Array.isArray(value)) refuse(say("{where}: {name} is {found}: expected a list.", { where, name, found: shown(value) }))
  if (value.length < fewest || value.length > most)
    refuse(say("{where}: found {count} {name}: expected {fewest} to {most}.", { where, count: value.length, name, fewest, most }))
  return value
}

function only(where, found, known) {
  const unknown = Object.keys(found).find((name) => !known.includes(name))
  if (unknown === undefined) return
  refuse(say("{where}: unknown property {found}: expected {known}.", { where, found: shown(unknown), known: known.join(", ") }))
}

function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value)
}

function shown(value) {
  if (Array.isArray(value)) return say("a list of {count}", { count: value.length })
  if (isObject(value)) return say("an object of {count}", { count: Object.keys(value).length })
  const text = typeof value === "string" ? JSON.stringify(value) : String(value)
  return text.length <= 60 ? text : `${text.slice(0, 57)}...`
}
