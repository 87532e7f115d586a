import assert from "node:assert/strict"
import { readFileSync, readdirSync } from "node:fs"
import { test } from "node:test"
import { parseRegions } from "../../web/region/document.mjs"
import { Drawing } from "../../web/region/drawing.mjs"
import { LANGUAGES, hasLabel, labelOf, say, speak, speakLanguage } from "../../web/words/words.mjs"

const web = new URL("../../web/", import.meta.url)
const scripts = (folder, ending) => readdirSync(folder).filter((name) => name.endsWith(ending)).map((name) => new URL(name, folder))
const source = [...scripts(web, ".js"), ...scripts(new URL("region/", web), ".mjs")].map((file) => readFileSync(file, "utf8")).join("\n")
const english = [...new Set([...source.matchAll(/\bsay\("([^"]+)"/g)].map(([, text]) => text))].sort()
const nodes = Object.values(JSON.parse(readFileSync(new URL("../browser/object_info.json", import.meta.url), "utf8")))
const fields = (text) => (text.match(/\{\w+\}/g) ?? []).sort()

// Names of methods and of things, and numbers: the same in every language.
const NAMES = [
  "yarn", "pi", "ntk", "ntk-sega", "yarn-bands", "dype-pi", "dype-ntk", "dype-yarn", "dype-yarn-bands", "ultraimage", "riflex",
  "cpu", "256 px", "2", "3", "4"
]

/** Values of each of our nodes' combos. */
const combos = nodes
  .filter((node) => node.python_module === "custom_nodes.ropeworks")
  .flatMap((node) => Object.values({ ...node.input.required, ...node.input.optional }))
  .flatMap(([kind, options]) => (Array.isArray(kind) ? [kind] : kind === "COMBO" ? [options.options] : []))
const values = [...new Set(combos.flat())].filter((value) => !NAMES.includes(value)).sort()

test("there is a dictionary for every language, and no other", () => {
  const found = readdirSync(new URL("words/", web)).filter((name) => name !== "words.mjs")
  assert.deepEqual(found.sort(), LANGUAGES.map((language) => `${language}.mjs`).sort())
})

test("what is said is written where it is said, so that it can be found", () => {
  assert.ok(english.length > 50)
  assert.equal(source.match(/\bsay\(/g).length, source.match(/\bsay\("[^"]+"/g).length)
})

for (const language of LANGUAGES)
  test(`${language}: what is said and the values of combos, no more and no less, with the same fields`, async () => {
    const { texts, values: called } = (await import(`../../web/words/${language}.mjs`)).default
    assert.deepEqual(Object.keys(texts).sort(), english)
    assert.deepEqual(Object.keys(called).sort(), values)
    for (const [text, found] of Object.entries({ ...texts, ...called })) {
      assert.ok(found.trim(), text)
      assert.deepEqual(fields(found), fields(text))
    }
    for (const combo of combos) assert.equal(new Set(combo.map((value) => called[value] ?? value)).size, combo.length, combo.join())
  })

test("a text that a language lacks stays English, and fields are filled", () => {
  speak({ texts: { "frame {number} / {count}": "Bild {number} von {count}" } })
  assert.equal(say("frame {number} / {count}", { number: 3, count: "$&" }), "Bild 3 von $&")
  assert.equal(say("Regions"), "Regions")
  assert.equal(say("toString"), "toString")
  speak()
})

test("a value is shown with what it is called, and stays what it is where it has no name", () => {
  speak({ values: { "by halves": "halbweise", auto: "auto" } })
  assert.deepEqual(["by halves", "auto", "yarn", null, "toString"].map(labelOf), ["halbweise (by halves)", "auto", "yarn", "", "toString"])
  assert.deepEqual(["by halves", "yarn", "toString"].map(hasLabel), [true, false, false])
  speak()
  assert.equal(labelOf("by halves"), "by halves")
})

test("the language asked for last is spoken, and English where there is no dictionary", async () => {
  await speakLanguage("fr")
  assert.equal(say("Regions"), "Régions")
  await Promise.all([speakLanguage("ru"), speakLanguage("tlh")])
  assert.equal(say("Regions"), "Regions")
  await speakLanguage("es")
  await speakLanguage(undefined)
  assert.equal(say("Regions"), "Regions")
})

test("new regions are named, and errors told, in the language spoken", async () => {
  await speakLanguage("zh")
  assert.equal(new Drawing().newName({ kind: "brush", erase: true }), "橡皮 1")
  const bad = JSON.stringify({ version: 1, shapes: [{ kind: "brush", radius: 0.1, points: [[0, 2]] }] })
  assert.throws(() => parseRegions(bad), { message: "形状 1，点 1：y 是 2：应为 0 到 1 的数。" })
  speak()
})
