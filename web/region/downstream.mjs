// What the nodes behind a region say of its cost: ratio and margin of Mixed-Res Region (CRPA), and the bands of Boundary Expand-Replace after it.

const [CRPA, BANDS] = ["MixedResRegionCRPA", "BoundaryExpandReplace"]
const FURTHEST = 20 // nodes
const [RATIOS, NESTED, WIDEST] = [[2, 3, 4], 4, 64] // NESTED: the ratio that leaves room for a margin

/**
 * {ratio, outer, inner, node} with bands in cells and the number of the CRPA node, and margin in cells where there is one, which has no bands
 * beside it; nothing where the mask goes to none.
 */
export function regionOf(node) {
  const crpa = behind(node, 0).find((found) => found.type === CRPA)
  if (!crpa) return null
  const ratio = valueOf(crpa, "ratio")
  if (!RATIOS.includes(ratio)) return null
  const margin = ratio === NESTED ? fits(valueOf(crpa, "margin")) : 0
  if (margin) return { ratio, outer: 0, inner: 0, margin, node: crpa.id }
  const { outer, inner } = bandsOf(bandsBehind(crpa))
  return { ratio, outer: Math.ceil(outer / ratio), inner, node: crpa.id }
}

function bandsBehind(node, hops = 0) {
  for (const next of hops < FURTHEST ? behind(node, 0) : []) {
    const found = next.type === BANDS && next.mode !== 4 ? next : next.outputs?.[0]?.type === "MODEL" ? bandsBehind(next, hops + 1) : null
    if (found) return found
  }
  return null
}

/** As nodes/boundary.py reads its fields: below 0 is the common width. */
function bandsOf(node) {
  if (!node) return { outer: 0, inner: 0 }
  const width = valueOf(node, "width")
  const side = (name) => (valueOf(node, name) >= 0 ? valueOf(node, name) : width)
  return { outer: fits(side("outer_width")), inner: fits(side("inner_width")) }
}

const fits = (value) => (value >= 0 && value <= WIDEST ? value : 0)

const valueOf = (node, name) => node.widgets?.find((widget) => widget.name === name)?.value

/** Nodes that an output is linked to, behind reroutes. */
function behind(node, slot, hops = 0) {
  const { graph } = node
  return (node.outputs?.[slot]?.links ?? []).flatMap((id) => {
    const link = graph?.getLink?.(id) ?? graph?.links?.get?.(id) ?? graph?.links?.[id]
    const target = link && graph.getNodeById(link.target_id)
    if (!target) return []
    return target.type === "Reroute" && hops < FURTHEST ? behind(target, 0, hops + 1) : [target]
  })
}
