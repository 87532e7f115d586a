// Drawn regions as they travel in a workflow. rope_core/region_document.py reads the same and explains it.

export const VERSION = 1
export const LIMITS = { characters: 500000, shapes: 64, keys: 64, points: 2000, name: 64, radius: 0.5 }
const TOLERANCE = 1e-4 // how far rounding may push a shape over the picture's edge
const DIGITS = 5 // 1e-5 of the largest picture is a sixth of a pixel
const AREA = ["x", "y", "width", "height"]

export class RegionError extends Error {}

/** The shapes that `text` holds; none for an empty text. Throws RegionError for anything else than a document. */
export function parseRegions(text) {
  if (typeof text !== "string") throw new RegionError(`regions are ${shown(text)}: expected a text.`)
  if (text.length > LIMITS.characters && [...text].length > LIMITS.characters)
    throw new RegionError(`regions are ${text.length} characters long: expected at most ${LIMITS.characters}.`)
  if (/^[ \t\r\n]*$/.test(text)) return []
  let found
  try {
    found = JSON.parse(text)
  } catch {
    throw new RegionError("regions are no JSON.")
  }
  if (!isObject(found)) throw new RegionError(`regions are ${shown(found)}: expected an object with version and shapes.`)
  if (found.version !== VERSION)
    throw new RegionError(`regions: version is ${shown(found.version)}: expected ${VERSION}. Update RoPE Works, or draw anew.`)
  only("regions", found, ["version", "shapes"])
  return listed("regions", found, "shapes", 0, LIMITS.shapes).map((shape, index) => readShape(`shape ${index + 1}`, shape))
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
  if (!isObject(found)) throw new RegionError(`${where} of the regions is ${shown(found)}: expected an object.`)
  const name = "name" in found ? found.name : ""
  if (typeof name !== "string" || [...name].length > LIMITS.name)
    throw new RegionError(`${where}: name is ${shown(name)}: expected a text of at most ${LIMITS.name} characters.`)
  const named = name ? `${where} (${shown(name)})` : where
  if (found.kind === "box" || found.kind === "ellipse") return readAreaShape(named, found, name)
  if (found.kind === "brush") return readStroke(named, found, name)
  throw new RegionError(`${named}: kind is ${shown(found.kind)}: expected one of box, ellipse, brush.`)
}

function readAreaShape(where, found, name) {
  only(where, found, ["kind", "name", ...AREA, "keys"])
  const keys = []
  const given = "keys" in found ? listed(where, found, "keys", 0, LIMITS.keys) : []
  given.forEach((key, index) => {
    const atKey = `${where}, key ${index + 1}`
    if (!isObject(key)) throw new RegionError(`${atKey} is ${shown(key)}: expected an object.`)
    only(atKey, key, ["at", ...AREA])
    const at = number(atKey, key, "at", 0, 1)
    if (index && at <= keys[index - 1].at)
      throw new RegionError(`${atKey}: at is ${at}: expected more than ${keys[index - 1].at} of the key before.`)
    keys.push({ at, ...readArea(atKey, key) })
  })
  return { kind: found.kind, name, ...readArea(where, found), ...(keys.length ? { keys } : {}) }
}

function readStroke(where, found, name) {
  only(where, found, ["kind", "name", "radius", "points", "erase"])
  const erase = "erase" in found ? found.erase : false
  if (typeof erase !== "boolean") throw new RegionError(`${where}: erase is ${shown(erase)}: expected true or false.`)
  const radius = number(where, found, "radius", 0, LIMITS.radius, true)
  const points = listed(where, found, "points", 1, LIMITS.points).map((point, index) => {
    if (!Array.isArray(point) || point.length !== 2)
      throw new RegionError(`${where}: point ${index + 1} is ${shown(point)}: expected [x, y].`)
    return point.map((value, axis) => number(`${where}, point ${index + 1}`, { [AREA[axis]]: value }, AREA[axis], 0, 1))
  })
  return { kind: "brush", name, radius, points, erase }
}

function readArea(where, found) {
  const [x, y] = ["x", "y"].map((name) => number(where, found, name, 0, 1))
  const [width, height] = ["width", "height"].map((name) => number(where, found, name, 0, 1, true))
  for (const [start, size, name] of [[x, width, "x + width"], [y, height, "y + height"]])
    if (start + size > 1 + TOLERANCE || start >= 1)
      throw new RegionError(`${where}: ${name} is ${start + size}: expected at most 1, inside the picture.`)
  return { x, y, width: Math.min(width, 1 - x), height: Math.min(height, 1 - y) }
}

function number(where, found, name, low, high, above = false) {
  const value = Object.hasOwn(found, name) ? found[name] : undefined
  const fits = typeof value === "number" && value >= low - TOLERANCE && value <= high + TOLERANCE
  if (!fits || (above && value <= low)) {
    const allowed = above ? `a number above ${low}, up to ${high}` : `a number from ${low} to ${high}`
    throw new RegionError(`${where}: ${name} is ${shown(value)}: expected ${allowed}.`)
  }
  return Math.min(Math.max(value, low), high)
}

function listed(where, found, name, fewest, most) {
  const value = Object.hasOwn(found, name) ? found[name] : undefined
  if (!Array.isArray(value)) throw new RegionError(`${where}: ${name} is ${shown(value)}: expected a list.`)
  if (value.length < fewest || value.length > most)
    throw new RegionError(`${where}: found ${value.length} ${name}: expected ${fewest} to ${most}.`)
  return value
}

function only(where, found, known) {
  const unknown = Object.keys(found).find((name) => !known.includes(name))
  if (unknown !== undefined) throw new RegionError(`${where}: unknown property ${shown(unknown)}: expected ${known.join(", ")}.`)
}

function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value)
}

function shown(value) {
  if (Array.isArray(value)) return `a list of ${value.length}`
  if (isObject(value)) return `an object of ${Object.keys(value).length}`
  const text = typeof value === "string" ? JSON.stringify(value) : String(value)
  return text.length <= 60 ? text : `${text.slice(0, 57)}...`
}
