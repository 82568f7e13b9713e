// What is asked stands in the page's address, so that a link brings it back; a picture that was dropped cannot.

export const FACETS = ["split", "language", "label", "category", "flags", "has", "licence", "source"] as const;

export interface Asked {
  words: string;
  by: string;
  like: string;
  where: string;
  chosen: Record<string, string[]>;
}

export const NOTHING: Asked = { words: "", by: "", like: "", where: "", chosen: {} };

/** The part of an address that the page and the server both understand. */
export function query(asked: Asked): URLSearchParams {
  const said = new URLSearchParams();
  for (const name of ["words", "by", "like", "where"] as const) if (asked[name]) said.set(name, asked[name]);
  for (const name of FACETS) for (const value of asked.chosen[name] ?? []) said.append(name, value);
  return said;
}

export function read(address: string): { asked: Asked; row: number | null } {
  const said = new URLSearchParams(address);
  const chosen: Record<string, string[]> = {};
  for (const name of FACETS) if (said.has(name)) chosen[name] = said.getAll(name);
  const text = (name: string) => said.get(name) ?? "";
  const row = text("row");
  return {
    asked: { words: text("words"), by: text("by"), like: text("like"), where: text("where"), chosen },
    row: /^\d+$/.test(row) ? Number(row) : null,
  };
}

export function write(asked: Asked, row: number | null): string {
  const said = query(asked);
  if (row !== null) said.set("row", String(row));
  const text = said.toString();
  return text ? `?${text}` : location.pathname;
}

/** The command that finds the same, to make a data set of it; "" where nothing is asked. */
export function command(path: string, asked: Asked, picture: boolean, condition: string | null, limit: number): string {
  const quote = (text: string) => (/^[\w./:@-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
  if (!picture && !asked.words && !asked.like)
    return condition ? ["carrara data filter", quote(path), "NEW --where", quote(condition)].join(" ") : "";
  const parts = ["carrara data search", quote(path)];
  if (picture) parts.push("--picture FILE");
  if (asked.like) parts.push("--like", quote(asked.like));
  if (asked.by) parts.push("--by", quote(asked.by));
  if (condition) parts.push("--where", quote(condition));
  return [...parts, `--limit ${limit} --into NEW`, ...(asked.words ? ["--", quote(asked.words)] : [])].join(" ");
}
