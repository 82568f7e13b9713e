// All that is known of one picture.

import { useEffect, useRef, useState } from "preact/hooks";
import { ask, edit, MAY_EDIT, seen, type About, type Box, type Caption, type Edit, type Found, type Hit, type Near, type Record_ } from "./answers";
import { lang, language } from "./naming";

const ALIKE = 12;

interface Props {
  row: number;
  hit: Hit | undefined;
  about: About;
  close: () => void;
  step: ((by: number) => void) | undefined;
  like: (row: number) => void;
  open: (row: number) => void;
  changed: (version: number) => void;
}

export function Record({ row, hit, about, close, step, like, open, changed }: Props) {
  const [record, setRecord] = useState<Record_ | null>(null);
  const [near, setNear] = useState<Near | null>(null);
  const [alike, setAlike] = useState<Hit[]>([]);
  const [error, setError] = useState("");
  const [undo, setUndo] = useState("");
  const panel = useRef<HTMLDivElement>(null);

  useEffect(() => {
    const ending = new AbortController();
    const tell = (fault: unknown) => ending.signal.aborted || setError(String((fault as Error).message));
    setError("");
    setUndo("");
    setNear(null);
    setAlike([]);
    ask<Record_>(`/api/rows/${row}`, ending.signal).then(setRecord, tell);
    ask<Near>(`/api/rows/${row}/near`, ending.signal).then(setNear, tell);
    if (about.ways.includes("picture"))
      ask<Found>(`/api/search?like=${row}&by=picture&limit=${ALIKE}`, ending.signal).then((found) => setAlike(found.hits), tell);
    return () => ending.abort();
  }, [row]);

  useEffect(() => panel.current?.focus(), []);

  const shown = record?.row === row ? record : null;
  const leftOut = `${shown?.columns.find((column) => column.name === "flags")?.value ?? ""}`.split(" ").includes("left_out");
  const save =
    shown && about.editable && MAY_EDIT
      ? async (change: Edit) => {
          try {
            const now = await edit(shown, change);
            setRecord((before) => (before?.row === now.row ? now : before));
            const back = "was" in change && change.was ? `; to undo it: carrara data restore ${about.path}@${now.version - 1} --changed` : "";
            setUndo(`Saved as version ${now.version}${back}`);
            setError("");
            changed(now.version);
            return true;
          } catch (fault) {
            setError(String((fault as Error).message));
            return false;
          }
        }
      : undefined;
  const captions = shown?.captions.length || !save ? (shown?.captions ?? []) : [{ language: "und", text: "" }];
  return (
    <div class="record" role="dialog" aria-label={`Picture ${row}`} tabIndex={-1} ref={panel}>
      <header>
        <button type="button" onClick={() => step?.(-1)} disabled={!step} aria-label="Previous picture" title="Previous (←)">
          ←
        </button>
        <button type="button" onClick={() => step?.(1)} disabled={!step} aria-label="Next picture" title="Next (→)">
          →
        </button>
        <h2>Row {row}</h2>
        <button type="button" class="main" onClick={() => like(row)} title="m">
          More like this
        </button>
        {save && (
          <button type="button" aria-pressed={leftOut} onClick={() => save({ left_out: !leftOut })} title="Keep it out of training and measuring">
            {leftOut ? "Left out" : "Leave out"}
          </button>
        )}
        <button type="button" onClick={close} aria-label="Close" title="Close (Esc)">
          ×
        </button>
      </header>
      {error && <p role="alert">{error}</p>}
      {undo && <p role="status">{undo}</p>}
      {shown && <Picture key={shown.row} record={shown} />}
      {hit && hit.reasons.length > 0 && (
        <section>
          <h3>Why it was found</h3>
          <ul class="reasons">
            {hit.reasons.map((reason) => (
              <li key={reason.way + reason.words}>
                <b>{reason.way}</b> {reason.words} <small>rank {reason.rank}, score {reason.score.toFixed(3)}</small>
              </li>
            ))}
          </ul>
        </section>
      )}
      {shown && captions.length > 0 && (
        <section>
          <h3>Captions</h3>
          <dl class="captions">
            {captions.map((caption, place) => (
              <div key={`${shown.id} ${place}`}>
                <dt>{language(caption.language)}</dt>
                <Words caption={caption} save={caption.further ? undefined : save} />
              </div>
            ))}
          </dl>
        </section>
      )}
      <Strip title="Nearly the same" hits={near?.hits ?? []} says={(other) => `${other.bits} of 64 bits of the hash differ`} open={open} />
      {near?.remark && <p class="remark">{near.remark}</p>}
      <Strip title="Looks alike" hits={alike} says={(other) => other.score.toFixed(2)} open={open} />
      {shown && (
        <section>
          <h3>Record</h3>
          <dl class="columns">
            {shown.columns.map((column) => (
              <div key={column.name}>
                <dt>{column.name}</dt>
                <dd dir="auto">{column.name === "url" ? <Link text={String(column.value)} /> : String(column.value)}</dd>
              </div>
            ))}
            <div>
              <dt>SHA-256</dt>
              <dd class="hash">{shown.id}</dd>
            </div>
          </dl>
          {shown.derived.length > 0 && (
            <details>
              <summary>Derived columns ({shown.derived.length})</summary>
              <dl class="columns">
                {shown.derived.map((column) => (
                  <div key={column.name}>
                    <dt>{column.name}</dt>
                    <dd>{column.made}</dd>
                  </div>
                ))}
              </dl>
            </details>
          )}
          <p>
            <a href={`/api/pictures/${shown.row}/${shown.id}`} target="_blank" rel="noreferrer">
              The file as it was given
            </a>
          </p>
        </section>
      )}
    </div>
  );
}

const focus = (area: HTMLTextAreaElement | null): void => area?.focus(); // one for all, so that it is called once

/** A caption, which can be written anew where it may be saved. */
function Words({ caption, save }: { caption: Caption; save: ((change: Edit) => Promise<boolean>) | undefined }) {
  const [text, setText] = useState<string | null>(null); // while it is written
  const said = { dir: "auto", lang: lang(caption.language) } as const;
  if (text === null)
    return (
      <dd {...said}>
        {caption.text}{" "}
        {save && (
          <button type="button" class="quiet" onClick={() => setText(caption.text)}>
            Edit
          </button>
        )}
      </dd>
    );
  const write = async () => (await save?.({ language: caption.language, was: caption.text || null, text })) && setText(null);
  return (
    <dd>
      <textarea
        {...said}
        aria-label="Caption"
        value={text}
        ref={focus}
        onInput={(event) => setText(event.currentTarget.value)}
        onKeyDown={(event) => {
          if (event.key !== "Escape") return;
          event.stopPropagation();
          setText(null);
        }}
      />
      <button type="button" class="main" onClick={write}>
        Save
      </button>{" "}
      <button type="button" onClick={() => setText(null)}>
        Cancel
      </button>
    </dd>
  );
}

function Picture({ record }: { record: Record_ }) {
  const [view, setView] = useState("");
  const [boxes, setBoxes] = useState(true);
  const views = record.beside.length ? ["", ...record.beside] : [];
  const size = Object.fromEntries(record.columns.map((column) => [column.name, column.value]));
  const small = Math.max(Number(size["width"]), Number(size["height"])) < 200;
  return (
    <figure>
      <div class={small ? "large small" : "large"}>
        <div class="fit">
          <img src={seen(record, 1024, view || undefined)} alt={record.captions[0]?.text ?? `picture ${record.row}`} />
          {boxes && record.boxes?.map((box, place) => <Frame key={place} box={box} />)}
        </div>
      </div>
      {(views.length > 0 || record.boxes) && (
        <figcaption>
          {views.map((name) => (
            <button key={name} type="button" aria-pressed={view === name} onClick={() => setView(name)}>
              {name || "picture"}
            </button>
          ))}
          {record.boxes && (
            <label>
              <input type="checkbox" checked={boxes} onChange={() => setBoxes(!boxes)} /> boxes ({record.boxes.length})
            </label>
          )}
        </figcaption>
      )}
    </figure>
  );
}

function Frame({ box }: { box: Box }) {
  const hue = [...box.label].reduce((sum, letter) => (sum * 31 + letter.codePointAt(0)!) % 360, 7);
  const percent = (share: number) => `${share * 100}%`;
  const style = {
    left: percent(box.left),
    top: percent(box.top),
    width: percent(box.width),
    height: percent(box.height),
    "--hue": String(hue),
  };
  return (
    <span class="box" style={style}>
      <span dir="auto">{box.label}</span>
    </span>
  );
}

interface StripProps<T> {
  title: string;
  hits: T[];
  says: (hit: T) => string;
  open: (row: number) => void;
}

function Strip<T extends { row: number; id: string }>({ title, hits, says, open }: StripProps<T>) {
  if (!hits.length) return null;
  return (
    <section>
      <h3>{title}</h3>
      <div class="strip">
        {hits.map((hit) => (
          <button key={hit.row} type="button" title={`Row ${hit.row}: ${says(hit)}`} onClick={() => open(hit.row)}>
            <img src={seen(hit, 96)} alt={`Row ${hit.row}, ${says(hit)}`} loading="lazy" />
          </button>
        ))}
      </div>
    </section>
  );
}

function Link({ text }: { text: string }) {
  if (!/^https?:\/\//i.test(text)) return <>{text}</>;
  return (
    <a href={text} target="_blank" rel="noreferrer noopener">
      {text}
    </a>
  );
}
