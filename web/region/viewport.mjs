// Where the picture lies in the stage, zoomed and panned. Lengths are CSS pixels of the stage; a view is {zoom, x, y}, the fraction
// of the picture that lies in the stage's middle.

import { clamp } from "./geometry.mjs"

export const WHOLE = { zoom: 1, x: 0.5, y: 0.5 }
const MOST_ZOOM = 32

/** {left, top, width, height} of the whole picture: as large as fits, times zoom, with no gap at an edge that it could fill. */
export function placed(stage, aspect, { zoom, x, y }) {
  const width = Math.max(Math.min(stage.width, stage.height * aspect), 1) * zoom
  const height = Math.max(Math.min(stage.height, stage.width / aspect), 1) * zoom
  const start = (room, size, middle) => (size <= room ? (room - size) / 2 : clamp(room / 2 - middle * size, room - size, 0))
  return { left: start(stage.width, width, x), top: start(stage.height, height, y), width, height }
}

/** The part of a placed picture that is in sight. */
export function inSight(place, stage) {
  const [left, top] = [Math.max(place.left, 0), Math.max(place.top, 0)]
  return {
    left,
    top,
    width: Math.min(place.left + place.width, stage.width) - left,
    height: Math.min(place.top + place.height, stage.height) - top
  }
}

/** The view with a placed picture moved by pixels. */
export function panned(view, stage, aspect, dx, dy) {
  const { left, top, width, height } = placed(stage, aspect, view)
  return settled({ zoom: view.zoom, x: (stage.width / 2 - left - dx) / width, y: (stage.height / 2 - top - dy) / height }, stage, aspect)
}

/** The view zoomed by a factor, with what lies at a point of the stage kept there. */
export function zoomed(view, stage, aspect, factor, [atX, atY]) {
  const zoom = clamp(view.zoom * factor, 1, MOST_ZOOM)
  const before = placed(stage, aspect, view)
  const after = placed(stage, aspect, { zoom, x: 0.5, y: 0.5 })
  const middle = (at, start, size, room, larger) => (at - start) / size + (room / 2 - at) / larger
  const x = middle(atX, before.left, before.width, stage.width, after.width)
  const y = middle(atY, before.top, before.height, stage.height, after.height)
  return settled({ zoom, x, y }, stage, aspect)
}

/** The view that is really shown, so that panning back begins at once. */
function settled(view, stage, aspect) {
  const { left, top, width, height } = placed(stage, aspect, view)
  return { zoom: view.zoom, x: (stage.width / 2 - left) / width, y: (stage.height / 2 - top) / height }
}
