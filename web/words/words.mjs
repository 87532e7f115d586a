// The words of this pack's pages. English is the key to every other language, and what a language lacks stays English.

export const LANGUAGES = ["zh", "zh-TW", "ja", "ko", "fr", "es", "ru", "pt-BR"]
let asked
let chosen = { texts: {}, values: {} }

/** texts: what the page says, by its English; values: what the values of combos are called. */
export function speak({ texts = {}, values = {} } = {}) {
  chosen = { texts, values }
}

/** Speaks a language of the frontend's setting, or English where there is no dictionary for it. */
export async function speakLanguage(language) {
  asked = language
  const dictionary = LANGUAGES.includes(language) ? (await import(`./${language}.mjs`)).default : {}
  if (asked === language) speak(dictionary)
}

/** A text in the language spoken, with {fields} in it filled in. */
export function say(english, fields = {}) {
  const text = Object.hasOwn(chosen.texts, english) ? chosen.texts[english] : english
  return text.replace(/\{(\w+)\}/g, (whole, name) => (Object.hasOwn(fields, name) ? String(fields[name]) : whole))
}

/** What a combo's value is called, with the value itself, which help pages and messages name. */
export function labelOf(value) {
  const text = String(value ?? "")
  return hasLabel(text) && chosen.values[text] !== text ? `${chosen.values[text]} (${text})` : text
}

export const hasLabel = (value) => Object.hasOwn(chosen.values, value)
