import assert from "node:assert/strict"
import { readFileSync, readdirSync } from "node:fs"
import { test } from "node:test"
import { LANGUAGES, say, speak } from "../../web/region/words.mjs"

const folder = new URL("../../web/region/", import.meta.url)
const source = [...readdirSync(folder).filter((name) => name.endsWith(".mjs")).map((name) => new URL(name, folder)), new URL("../region_mask.js", folder)]
  .map((file) => readFileSync(file, "utf8")).join("\n")
const fields = (text) => (text.match(/\{\w+\}/g) ?? []).sort()

test("there is a dictionary for every language, and no other", () => {
  assert.deepEqual(readdirSync(new URL("words/", folder)).sort(), LANGUAGES.map((language) => `${language}.mjs`).sort())
})

for (const language of LANGUAGES)
  test(`${language}: texts that the editor says, with the same fields in them`, async () => {
    const { default: words } = await import(`../../web/region/words/${language}.mjs`)
    const said = [...source.matchAll(/say\("([^"]+)"/g)].map(([, text]) => text)
    assert.ok(said.length > 15)
    for (const text of said.filter((text) => !text.startsWith("Region canvas"))) assert.ok(words[text]?.trim(), text)
    for (const [english, text] of Object.entries(words)) {
      assert.ok(source.includes(`"${english}"`), english)
      assert.deepEqual(fields(text), fields(english))
    }
  })

test("a text that a language lacks stays English, and fields are filled", () => {
  speak({ "frame {number} / {count}": "Bild {number} von {count}" })
  assert.equal(say("frame {number} / {count}", { number: 3, count: "$&" }), "Bild 3 von $&")
  assert.equal(say("Regions"), "Regions")
  assert.equal(say("toString"), "toString")
  speak()
})
