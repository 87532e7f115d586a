// The editor's words. English is the key to every other language; what a language lacks stays English.

export const LANGUAGES = ["zh", "zh-TW", "ja", "ko", "fr", "es", "ru", "pt-BR"]
let chosen = {}

/** dictionary: texts by their English ones. */
export function speak(dictionary = {}) {
  chosen = dictionary
}

/** A text in the language chosen, with {names} in it replaced by values. */
export function say(english, values = {}) {
  const text = Object.hasOwn(chosen, english) ? chosen[english] : english
  return text.replace(/\{(\w+)\}/g, (whole, name) => (Object.hasOwn(values, name) ? String(values[name]) : whole))
}
