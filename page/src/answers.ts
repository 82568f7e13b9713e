// What the server answers (src/carrara/serving/browse.py), and how it is asked.

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

export interface Record_ {
  row: number;
  id: string;
  captions: { language: string; text: string }[];
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

export async function ask<T>(address: string, signal?: AbortSignal, body?: Blob | null): Promise<T> {
  const asked: RequestInit = body ? { method: "POST", body } : {};
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

/** The address of a picture as it is seen, at most `side` long. */
export function seen(picture: { row: number; id: string }, side: number, beside?: string): string {
  const kind = beside ? `beside/${beside}` : "seen";
  return `/api/pictures/${picture.row}/${picture.id}/${kind}?side=${side}`;
}
