// How large what comes to a node will be, followed back through links, reroutes, subgraphs and the nodes that people put between.
// It reads ComfyUI's graph objects and changes none; what it does not know for sure is null.

const FURTHEST = 50 // nodes
const [SUBGRAPH_INPUT, BYPASSED] = [-10, 4]
const LATENT_PIXELS = 8
const FRAMES_PER_LATENT = 4
const FRAMES_PER_LATENT_BY_NODE = { EmptyLTXVLatentVideo: 8, LTXVImgToVideo: 8, EmptyMochiLatentVideo: 6, EmptyCosmosLatentVideo: 8 }
const IMAGE = "IMAGE"

/** What changes neither size nor frames, by the input that it comes from. */
const SAME = {
  KSampler: "latent_image", KSamplerAdvanced: "latent_image", SamplerCustom: "latent_image", SamplerCustomAdvanced: "latent_image",
  SetLatentNoiseMask: "samples", RepeatLatentBatch: "samples", LatentFromBatch: "samples", LatentFlip: "samples", LatentBlend: "samples1",
  LatentComposite: "samples_to", LatentAdd: "samples1", LatentMultiply: "samples", InjectLatentNoise: "latents",
  VAEDecode: "samples", VAEDecodeTiled: "samples",
  ImageInvert: "image", ImageBlur: "image", ImageSharpen: "image", ImageFlip: "image", ImageBlend: "image1", ImageQuantize: "image"
}
const BY_FIELDS = { LatentUpscale: "samples", ImageScale: "image" }
const BY_FACTOR = { LatentUpscaleBy: ["samples", LATENT_PIXELS], ImageScaleBy: ["image", 1] }
const ENCODERS = { VAEEncode: "pixels", VAEEncodeTiled: "pixels", VAEEncodeForInpaint: "pixels" }

/** {width, height, frames, length} of what is linked to an input of a node, or null. length: frames of the video, where known. */
export function sizeAtInput(node, name, hops = 0) {
  const from = hops < FURTHEST ? originOf(node, name) : null
  return from && sizeMade(from.node, from.type, hops + 1)
}

/** Width, height and frames as a node's own fields say, such as those of an empty latent. */
export function sizeOfFields(node) {
  const names = ["width", "height", "length"]
  const [width, height, length] = names.map((name) => fieldOf(node, name))
  if (!(width > 0 && height > 0)) return null
  if (length === undefined) return inputNamed(node, "length") ? null : { width, height, frames: 1 }
  if (!(length > 0)) return null
  const each = FRAMES_PER_LATENT_BY_NODE[node.type] ?? FRAMES_PER_LATENT
  return { width, height, frames: Math.floor((length - 1) / each) + 1, length }
}

function sizeMade(node, type, hops) {
  const of = (table) => (Object.hasOwn(table, node.type) ? table[node.type] : null)
  if (of(SAME)) return sizeAtInput(node, of(SAME), hops)
  if (of(BY_FACTOR)) return scaled(node, ...of(BY_FACTOR), hops)
  if (of(BY_FIELDS)) return scaledTo(node, of(BY_FIELDS), hops)
  if (of(ENCODERS)) return inWholeLatents(sizeAtInput(node, of(ENCODERS), hops))
  if (type === IMAGE) return sizeOfPicture(node)
  return sizeOfFields(node)
}

function scaled(node, name, unit, hops) {
  const [size, factor] = [sizeAtInput(node, name, hops), fieldOf(node, "scale_by")]
  if (!size || !(factor > 0)) return null
  const side = (length) => Math.max(Math.round((length / unit) * factor), 1) * unit
  return { ...size, width: side(size.width), height: side(size.height) }
}

/** Of two fields one may be 0: that side keeps the shape. */
function scaledTo(node, name, hops) {
  const [width, height] = [fieldOf(node, "width"), fieldOf(node, "height")]
  if (!(width >= 0 && height >= 0)) return null
  const size = sizeAtInput(node, name, hops)
  if (width && height) return { frames: 1, ...size, width, height }
  if (!size || !(width || height)) return size
  const unit = name === "samples" ? LATENT_PIXELS : 1
  const other = (given, from, to) => Math.max(Math.round((given * to) / from / unit), 1) * unit
  return { ...size, width: width || other(height, size.height, size.width), height: height || other(width, size.width, size.height) }
}

function inWholeLatents(size) {
  if (!size) return null
  const whole = (side) => Math.floor(side / LATENT_PIXELS) * LATENT_PIXELS
  return size.frames === 1 ? { width: whole(size.width), height: whole(size.height), frames: 1 } : null
}

/** Of a picture that a node shows, such as a loaded one. */
export function sizeOfPicture(node) {
  const image = node?.imgs?.[0]
  return image?.complete && image.naturalWidth ? { width: image.naturalWidth, height: image.naturalHeight, frames: 1 } : null
}

const inputNamed = (node, name) => node.inputs?.find((input) => input.name === name)

/** The value of a node's field: its own, or of what is linked to it; nothing where that is not known. */
function fieldOf(node, name, hops = 0) {
  const input = inputNamed(node, name)
  if (input?.link == null) return node.widgets?.find((widget) => widget.name === name)?.value
  if (hops > FURTHEST) return undefined
  const from = originOf(node, name)
  if (from?.promoted) return fieldOf(from.node, from.promoted, hops + 1)
  return /^Primitive/.test(from?.node?.type ?? "") ? from.node.widgets?.find((widget) => ["value", name].includes(widget.name))?.value : undefined
}

/** The node that makes what is linked to an input, behind reroutes, bypassed nodes and the walls of subgraphs; with the type of it. */
export function originOf(node, name) {
  let place = { node, input: inputNamed(node, name) }
  for (let hops = 0; place?.input && hops < FURTHEST; hops++) {
    const link = linkOf(place.node.graph, place.input.link)
    if (!link) return null
    const found = link.origin_id === SUBGRAPH_INPUT ? outside(place.node.graph, link.origin_slot) : inside(place.node.graph, link)
    if (!found || !found.through) return found
    place = { node: found.node, input: found.through }
  }
  return null
}

const linkOf = (graph, id) => (id == null ? null : (graph?.getLink?.(id) ?? graph?.links?.get?.(id) ?? graph?.links?.[id] ?? null))
const nodeOf = (graph, id) => graph?.getNodeById?.(id) ?? null

/** From within a subgraph to the one node that stands for it; nothing where several do, which may be fed differently. */
function outside(subgraph, slot) {
  const nodes = holdersOf(subgraph.rootGraph ?? subgraph, subgraph)
  const input = nodes.length === 1 ? nodes[0].inputs?.[slot] : null
  if (!input) return null
  if (input.link != null) return { node: nodes[0], through: input }
  const widget = input.widget?.name ?? input._widget?.name
  return widget ? { node: nodes[0], promoted: widget } : null
}

function holdersOf(graph, subgraph, seen = new Set()) {
  if (!graph || seen.has(graph)) return []
  seen.add(graph)
  return (graph.nodes ?? []).flatMap((node) => [...(node.subgraph === subgraph ? [node] : []), ...holdersOf(node.subgraph, subgraph, seen)])
}

function inside(graph, link) {
  const node = nodeOf(graph, link.origin_id)
  if (!node) return null
  if (node.type === "Reroute") return { node, through: node.inputs?.[0] }
  const output = node.outputs?.[link.origin_slot]
  const type = output?.type ?? link.type
  if (node.mode === BYPASSED) {
    const through = node.inputs?.find((input) => input.type === type)
    return through ? { node, through } : null
  }
  if (!node.subgraph) return { node, type }
  const inner = linkOf(node.subgraph, node.subgraph.outputs?.[link.origin_slot]?.linkIds?.[0])
  return inner && inside(node.subgraph, inner)
}
