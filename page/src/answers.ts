// What the server answers (src/carrara/serving/app.py), and how it is asked.

export interface Reason {
  way: string;
  rank: number;
  score: number;
  words: string;
}

export interface Hit {
  row: number;
  id: string;
  score: number;
  reasons: Reason[];
  [column: string]: unknown;
}

export interface Found {
  hits: Hit[];
  ways: string[];
  version: number;
  pictures: number;
  more: boolean;
  seconds: number;
  verdict: string;
  remarks: string[];
  total: number | null;
  condition: string | null;
}

export interface About {
  name: string;
  path: string;
  version: number;
  pictures: number;
  languages: string[];
  ways: string[];
  missing: Record<string, string>;
  editable: boolean;
}

export interface Facet {
  name: string;
  values: { value: string; count: number }[];
}

export interface Box {
  label: string;
  left: number;
  top: number;
  width: number;
  height: number;
}

export interface Caption {
  language: string;
  text: string;
  further?: boolean; // one of several in its language
}

export interface Record_ {
  row: number;
  id: string;
  captions: Caption[];
  boxes: Box[] | null;
  beside: string[];
  columns: { name: string; value: string | number }[];
  derived: { name: string; made: string }[];
  version: number;
}

export interface Near {
  hits: { row: number; id: string; bits: number }[];
  remark: string;
}

/** An error whose message is meant for people. */
export class Refused extends Error {}

// Stands behind the # of the address that the command printed, and is forgotten with this tab.
const TOKEN = location.hash.slice(1) || sessionStorage.getItem("token") || "";
sessionStorage.setItem("token", TOKEN);
export const MAY_EDIT = TOKEN !== "";

export async function ask<T>(address: string, signal?: AbortSignal, body?: Blob | string | null): Promise<T> {
  const asked: RequestInit = body ? { method: "POST", body } : {};
  if (typeof body === "string") asked.headers = { "x-carrara-token": TOKEN };
  if (signal) asked.signal = signal;
  let response: Response;
  try {
    response = await fetch(address, asked);
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Refused("The server does not answer; is `carrara data browse` still running?");
  }
  const answer = (await response.json().catch(() => null)) as (T & { error?: string }) | null;
  if (!response.ok || answer === null) throw new Refused(answer?.error ?? `The server answered ${response.status}.`);
  return answer;
}

export type Edit = { left_out: boolean } | { language: string; was: string | null; text: string };

/** Changes a picture, and gives its record as it is then. */
export function edit(picture: { row: number; id: string }, change: Edit): Promise<Record_> {
  return ask<Record_>(`/api/pictures/${picture.row}/${picture.id}`, undefined, JSON.stringify(change));
}

/** The address of a picture as it is seen, at most `side` long. */
export function seen(picture: { row: number; id: string }, side: number, beside?: string): string {
  const kind = beside ? `beside/${beside}` : "seen";
  return `/api/pictures/${picture.row}/${picture.id}/${kind}?side=${side}`;
}
