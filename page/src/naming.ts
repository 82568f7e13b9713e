// What a picture, a language or a column is called.

import type { Hit } from "./answers";

const NAMES = new Intl.DisplayNames([navigator.language, "en"], { type: "language" });

export function language(code: string): string {
  if (code === "und") return "language not stated";
  try {
    return NAMES.of(code) ?? code;
  } catch {
    return code;
  }
}

/** Of a code, what the attribute `lang` takes. */
export const lang = (code: string): string | undefined => (code === "und" ? undefined : code);

const PREFERRED = [...navigator.languages, "en"].flatMap((code) => {
  const whole = code.toLowerCase().replaceAll("-", "_");
  return [`caption_${whole}`, `caption_${whole.split("_")[0]}`];
});

/** A caption in a language of the reader, else any, else another name; with its language where it is known. */
export function title(hit: Hit): { text: string; lang?: string | undefined } {
  const captions = Object.keys(hit).filter((name) => name.startsWith("caption"));
  const column = [...PREFERRED, "caption", ...captions].find((name) => typeof hit[name] === "string");
  if (column) return { text: String(hit[column]), lang: column.slice("caption_".length).replaceAll("_", "-") || undefined };
  const folder = String(hit["from"] ?? "").split("/").pop(); // of several with an IMG_0001
  const file = [hit["source"], folder].filter(Boolean).join(" · ");
  return { text: String(hit["label"] ?? (file || hit.id.slice(0, 12))) };
}

const FACETS: Record<string, string> = {
  split: "Split",
  language: "Captions in",
  label: "Label",
  category: "Category",
  flags: "Flags",
  has: "Has",
  licence: "Licence",
  source: "Source",
};

export const facet = (name: string): string => FACETS[name] ?? name;

export function value(name: string, text: string): string {
  if (text === "") return "none";
  if (name === "language") return language(text);
  return name === "source" ? text.replace(/[/:]$/, "") : name === "split" ? text.replace("_", " ") : text;
}

export const count = (n: number): string => n.toLocaleString();
