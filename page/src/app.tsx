// A search box, filters, a grid, and the record of one picture; what is asked stands in the address.

import { useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { ask, seen, type About, type Facet, type Found, type Hit, type Record_ } from "./answers";
import { command, NOTHING, query, read, write, type Asked } from "./address";
import { Facets } from "./facets";
import { Grid } from "./grid";
import { count } from "./naming";
import { Record } from "./record";

const PAGE = 100;
const MOST = 10_000; // hits of one search (search/query.py)
const START = read(location.search);

interface Answer {
  key: object; // of the question
  pages: Map<number, Hit[]>;
  found: Found | null; // the newest
  total: number;
}

const unanswered = (): Answer => ({ key: {}, pages: new Map(), found: null, total: 0 });

export function App() {
  const [about, setAbout] = useState<About | null>(null);
  const [asked, setAsked] = useState<Asked>(START.asked);
  const [picture, setPicture] = useState<Blob | null>(null);
  const [row, setRow] = useState<number | null>(START.row);
  const [words, setWords] = useState(START.asked.words);
  const [facets, setFacets] = useState<Facet[]>([]);
  const [answer, setAnswer] = useState<Answer>(unanswered);
  const [current, setCurrent] = useState(-1);
  const [gridHasKeys, setGridHasKeys] = useState(false);
  const [waiting, setWaiting] = useState(0);
  const [error, setError] = useState("");
  const [filtersShown, setFiltersShown] = useState(false);
  const [over, setOver] = useState(false);
  const [like, setLike] = useState<Record_ | null>(null);
  const box = useRef<HTMLInputElement>(null);
  const file = useRef<HTMLInputElement>(null);
  const columns = useRef(1);
  const asking = useRef({ answer: unanswered(), under: new Set<number>(), ending: new AbortController() });

  const tell = useCallback((fault: unknown) => {
    if (!(fault instanceof DOMException && fault.name === "AbortError")) setError(String((fault as Error).message));
  }, []);

  // A question changes in one place: the address, the box and the grid follow.
  const change = useCallback((next: Asked, shown: Blob | null = null) => {
    setAsked(next);
    setPicture(shown);
    setWords(next.words);
    setRow(null);
    setCurrent(-1);
    history.pushState(null, "", write(next, null));
  }, []);

  const show = useCallback(
    (next: number | null) => {
      setRow(next);
      history.replaceState(null, "", write(asked, next));
    },
    [asked],
  );

  useEffect(() => {
    ask<About>("/api/dataset").then((found) => {
      setAbout(found);
      document.title = `${found.name} · Carrara`;
    }, tell);
    const back = () => {
      const there = read(location.search);
      setAsked(there.asked);
      setWords(there.asked.words);
      setRow(there.row);
      setPicture(null);
      setCurrent(-1);
    };
    addEventListener("popstate", back);
    return () => removeEventListener("popstate", back);
  }, []);

  const load = useCallback(
    (page: number) => {
      const { answer: mine, under, ending } = asking.current;
      const searched = Boolean(picture || asked.words || asked.like);
      if (mine.pages.has(page) || under.has(page) || (searched && page * PAGE >= MOST)) return;
      under.add(page);
      setWaiting((n) => n + 1);
      const said = query(asked);
      said.set("limit", String(PAGE));
      said.set("offset", String(page * PAGE));
      ask<Found>(`/api/search?${said}`, ending.signal, picture)
        .then((found) => {
          if (asking.current.answer !== mine) return;
          mine.pages.set(page, found.hits);
          const more = found.more && (mine.found?.more ?? true); // the last page may have come before this one
          mine.found = page === 0 || !mine.found ? { ...found, more } : { ...found, more, remarks: mine.found.remarks, verdict: mine.found.verdict };
          const seenSoFar = page * PAGE + found.hits.length;
          if (found.total !== null) mine.total = found.total;
          else if (!found.more) mine.total = seenSoFar;
          else mine.total = Math.max(mine.total, Math.min(MOST, seenSoFar + PAGE));
          setError("");
          setAnswer({ ...mine });
        })
        .catch((fault: unknown) => {
          tell(fault);
          // What was found before answers another question.
          if (asking.current.answer === mine && !mine.pages.size) setAnswer({ ...mine });
        })
        .finally(() => {
          under.delete(page);
          setWaiting((n) => n - 1);
        });
    },
    [asked, picture],
  );

  useEffect(() => {
    asking.current.ending.abort();
    asking.current = { answer: unanswered(), under: new Set(), ending: new AbortController() };
    setError("");
    document.querySelector(".frame")?.scrollTo(0, 0);
    load(0);
  }, [load]);

  useEffect(() => {
    const ending = new AbortController();
    const said = query({ ...asked, words: "", by: "", like: "" });
    ask<{ facets: Facet[] }>(`/api/facets?${said}`, ending.signal).then((found) => setFacets(found.facets), tell);
    return () => ending.abort();
  }, [asked.chosen, asked.where]);

  useEffect(() => {
    setLike(null);
    const ending = new AbortController();
    if (/^\d+$/.test(asked.like)) ask<Record_>(`/api/rows/${asked.like}`, ending.signal).then(setLike, () => undefined);
    return () => ending.abort();
  }, [asked.like]);

  const at = useCallback((index: number) => answer.pages.get(Math.floor(index / PAGE))?.[index % PAGE], [answer]);
  const need = useCallback(
    (first: number, last: number) => {
      for (let page = Math.floor(first / PAGE); page * PAGE < last; page++) load(page);
    },
    [load],
  );

  const open = useCallback(
    (index: number) => {
      setCurrent(index);
      const hit = at(index);
      if (hit) show(hit.row);
    },
    [at, show],
  );

  const moreLike = useCallback((other: number) => change({ ...NOTHING, like: String(other) }), [change]);
  const lookFor = useCallback(
    (blob: Blob | null | undefined) => blob && change({ ...NOTHING, chosen: asked.chosen, where: asked.where }, blob),
    [change, asked],
  );

  // A link that names a picture: where it stands among what was found is known once that is there.
  useEffect(() => {
    if (row === null || current >= 0) return;
    for (const [page, hits] of answer.pages) {
      const place = hits.findIndex((hit) => hit.row === row);
      if (place >= 0) setCurrent(page * PAGE + place);
    }
  }, [answer, row, current]);

  const here = current >= 0 ? at(current) : undefined;
  const stepped = row !== null && here?.row === row;
  const step = useCallback(
    (by: number) => {
      const next = Math.min(answer.total - 1, Math.max(0, current + by));
      setCurrent(next);
      const hit = at(next);
      if (hit && row !== null) show(hit.row);
    },
    [answer, current, at, row, show],
  );
  const close = useCallback(() => {
    show(null);
    setGridHasKeys(true);
  }, [show]);

  useLayoutEffect(() => {
    const key = (event: KeyboardEvent) => {
      const target = event.target as HTMLElement;
      const typing = target.matches("input:not([type=checkbox]), select, textarea");
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "Escape") {
        if (row !== null) close();
        else if (typing) target.blur();
        else if (picture || asked.words || asked.like) change({ ...asked, words: "", like: "", by: "" });
        else return;
      } else if (typing) {
        if (!(target === box.current && event.key === "ArrowDown")) return;
        setGridHasKeys(true);
        setCurrent(Math.max(0, current));
      } else if (event.key === "/") {
        box.current?.focus();
        box.current?.select();
      } else if (event.key === "m" && (row !== null || here)) moreLike(row ?? here!.row);
      else if (event.key === "ArrowRight" && (row === null || stepped)) step(1);
      else if (event.key === "ArrowLeft" && (row === null || stepped)) step(-1);
      else if (event.key === "ArrowDown" && row === null) step(current < 0 ? 1 : columns.current);
      else if (event.key === "ArrowUp" && row === null) step(-columns.current);
      else return;
      if (event.key.startsWith("Arrow") && row === null) setGridHasKeys(true);
      event.preventDefault();
    };
    addEventListener("keydown", key);
    return () => removeEventListener("keydown", key);
  }, [row, close, picture, asked, change, current, here, moreLike, stepped, step]);

  useEffect(() => {
    let depth = 0;
    const hasFile = (event: DragEvent) => event.dataTransfer?.types.includes("Files") ?? false;
    const on = {
      dragenter: (event: DragEvent) => hasFile(event) && (depth++, setOver(true)),
      dragleave: () => (depth = Math.max(0, depth - 1)) === 0 && setOver(false),
      dragover: (event: DragEvent) => hasFile(event) && event.preventDefault(),
      drop: (event: DragEvent) => {
        depth = 0;
        setOver(false);
        if (!hasFile(event)) return;
        event.preventDefault();
        lookFor(event.dataTransfer?.files[0]);
      },
      paste: (event: ClipboardEvent) => lookFor([...(event.clipboardData?.files ?? [])][0]),
    };
    const entries = Object.entries(on) as [keyof WindowEventMap, EventListener][];
    for (const [name, listener] of entries) addEventListener(name, listener);
    return () => {
      for (const [name, listener] of entries) removeEventListener(name, listener);
    };
  }, [lookFor]);

  const picked = useMemo(() => (picture ? URL.createObjectURL(picture) : ""), [picture]);
  useEffect(() => () => URL.revokeObjectURL(picked), [picked]);

  const found = answer.found;
  const filters = Object.values(asked.chosen).reduce((sum, values) => sum + values.length, asked.where ? 1 : 0);
  const searched = Boolean(picture || asked.words || asked.like);
  const limit = Math.max(1, found?.more ? Math.min(MOST, found.pictures) : answer.total);
  const status = !found
    ? ""
    : searched
      ? `${count(answer.total)}${found.more && answer.total < MOST ? " or more" : ""} found by ${[...new Set(found.ways)].join(", ")} in ${Math.round(found.seconds * 1000)} ms`
      : `${count(answer.total)}${filters ? ` of ${count(found.pictures)}` : ""} pictures`;

  return (
    <div class="app" aria-busy={waiting > 0}>
      <header class="top">
        <a class="name" href="/" onClick={(event) => (event.preventDefault(), change(NOTHING))} title="All pictures">
          {about?.name ?? "…"}
        </a>
        <form
          role="search"
          onSubmit={(event) => {
            event.preventDefault();
            change({ ...asked, words: words.trim(), like: "", by: asked.by === "picture" ? "" : asked.by });
          }}
        >
          {picture && (
            <span class="chip">
              <img key={picked} src={picked} alt="the picture that is looked for" onError={(event) => (event.currentTarget.hidden = true)} />
              <button type="button" aria-label="Without this picture" onClick={() => change({ ...asked, by: "" })}>
                ×
              </button>
            </span>
          )}
          {asked.like && (
            <span class="chip">
              {like && <img src={seen(like, 96)} alt="" />}
              <span>like row {asked.like}</span>
              <button type="button" aria-label="Without likeness" onClick={() => change({ ...asked, like: "", by: "" })}>
                ×
              </button>
            </span>
          )}
          <input
            ref={box}
            type="search"
            name="words"
            dir="auto"
            aria-label="Words to look for, in any language"
            placeholder="Words in any language, or drop a picture"
            value={words}
            maxLength={4000}
            autocomplete="off"
            onInput={(event) => setWords(event.currentTarget.value)}
            onFocus={() => setGridHasKeys(false)}
          />
          <select
            aria-label="The way to search"
            value={asked.by}
            onChange={(event) => change({ ...asked, by: event.currentTarget.value }, picture)}
          >
            <option value="">every way</option>
            {about?.ways.map((way) => (
              <option key={way} value={way}>
                by {way}
              </option>
            ))}
          </select>
          <button type="button" onClick={() => file.current?.click()} title="Is this picture in the data set, and what looks like it?">
            Picture…
          </button>
          <input
            ref={file}
            type="file"
            accept="image/*"
            hidden
            onChange={(event) => {
              lookFor(event.currentTarget.files?.[0]);
              event.currentTarget.value = "";
            }}
          />
          <button type="button" class="filters" aria-expanded={filtersShown} onClick={() => setFiltersShown(!filtersShown)}>
            Filters{filters ? ` (${filters})` : ""}
          </button>
        </form>
      </header>
      <main>
        <nav class={filtersShown ? "side shown" : "side"} aria-label="Filters">
          {filters > 0 && (
            <button type="button" class="quiet" onClick={() => change({ ...asked, chosen: {}, where: "" }, picture)}>
              All pictures again
            </button>
          )}
          <Facets
            facets={facets}
            asked={asked}
            // What stands in the box is asked along, so that a click does not undo what was typed.
            change={(next) => change(picture || asked.like ? next : { ...next, words: words.trim() }, picture)}
            command={command(about?.path ?? "DATASET", asked, picture !== null, found?.condition ?? null, limit)}
            most={searched && found?.more ? limit : 0}
          />
        </nav>
        <div class="results">
          <div class="told" role="status">
            <span>{status}</span>
            {about && <span class="version">version {about.version}</span>}
          </div>
          {error && (
            <p class="error" role="alert">
              {error}
            </p>
          )}
          {found?.verdict && <p class="verdict">{found.verdict}</p>}
          {found && found.remarks.length > 0 && (
            <details class="remark">
              <summary>{found.remarks.length === 1 ? "A note" : `${found.remarks.length} notes`} on this search</summary>
              {found.remarks.map((remark) => (
                <p key={remark}>{remark}</p>
              ))}
            </details>
          )}
          {found && answer.total === 0 && !error && <p class="empty">Nothing found.</p>}
          <Grid
            total={answer.total}
            at={at}
            need={need}
            current={current}
            open={open}
            choose={setCurrent}
            focus={gridHasKeys && row === null}
            columns={columns}
          />
        </div>
        {row !== null && about && (
          <Record
            row={row}
            hit={stepped ? here : undefined}
            about={about}
            close={close}
            step={stepped ? step : undefined}
            like={moreLike}
            open={show}
            changed={(version) => setAbout({ ...about, version })}
          />
        )}
      </main>
      {over && <div class="drop">Drop a picture: is it in the data set, and what looks like it?</div>}
    </div>
  );
}
