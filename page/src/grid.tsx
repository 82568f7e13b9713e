// A grid of thumbnails in which only what is in sight exists, however many there are.

import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { seen, type Hit } from "./answers";
import { title } from "./naming";

const GAP = 8;
const WORDS = 22; // pixels of the line below a thumbnail
const AROUND = 2; // rows above and below that are ready too

interface Props {
  total: number;
  at: (index: number) => Hit | undefined;
  need: (first: number, last: number) => void;
  current: number;
  open: (index: number) => void;
  choose: (index: number) => void;
  focus: boolean; // whether the current one takes the keyboard
  columns: { current: number };
}

export function Grid({ total, at, need, current, open, choose, focus, columns }: Props) {
  const frame = useRef<HTMLDivElement>(null);
  const [sight, setSight] = useState({ top: 0, width: 0, height: 0 });

  useLayoutEffect(() => {
    const element = frame.current!;
    const look = () => setSight({ top: element.scrollTop, width: element.clientWidth, height: element.clientHeight });
    const watcher = new ResizeObserver(look);
    watcher.observe(element);
    element.addEventListener("scroll", look, { passive: true });
    look();
    return () => {
      watcher.disconnect();
      element.removeEventListener("scroll", look);
    };
  }, []);

  const least = sight.width < 480 ? 96 : 136;
  const inside = Math.max(1, sight.width - 2 * GAP);
  const across = Math.max(2, Math.floor((inside + GAP) / (least + GAP)));
  columns.current = across;
  const side = (inside - (across - 1) * GAP) / across;
  const tall = side + WORDS + GAP;
  const first = Math.max(0, Math.floor(sight.top / tall) - AROUND) * across;
  const last = Math.min(total, (Math.ceil((sight.top + sight.height) / tall) + AROUND) * across);

  useEffect(() => {
    if (last > first) need(first, last);
  }, [first, last, need]);

  useLayoutEffect(() => {
    // The current one comes into sight, and takes the keyboard where the grid has it.
    const element = frame.current!;
    if (current < 0) return;
    const top = Math.floor(current / across) * tall;
    if (top < element.scrollTop) element.scrollTop = top;
    else if (top + tall > element.scrollTop + element.clientHeight) element.scrollTop = top + tall - element.clientHeight + GAP;
  }, [current, across, tall]);

  // Before the next key can come: Enter is meant for the one that an arrow has just chosen.
  useLayoutEffect(() => {
    if (focus) frame.current!.querySelector<HTMLElement>('[aria-current="true"]')?.focus({ preventScroll: true });
  }, [current, focus, first, last]);

  const sharp = devicePixelRatio > 1.3 || side > 200 ? 384 : 192;
  const cells = [];
  for (let index = first; index < last; index++) {
    const hit = at(index);
    const named = hit && title(hit);
    cells.push(
      <button
        key={index}
        type="button"
        class="cell"
        aria-current={index === current ? "true" : undefined}
        tabIndex={index === Math.max(0, current) ? 0 : -1}
        data-row={hit?.row}
        title={hit?.reasons.map((reason) => reason.words).join("; ")}
        onClick={() => open(index)}
        onFocus={() => choose(index)}
      >
        <span class="thumb" style={{ height: `${side}px` }}>
          {hit && <img key={hit.id} src={seen(hit, sharp)} alt={named!.text} draggable={false} decoding="async" />}
        </span>
        <span class="words" dir="auto" lang={named?.lang}>
          {named?.text ?? " "}
        </span>
      </button>,
    );
  }
  const rows = Math.ceil(total / across);
  const style = { transform: `translateY(${(first / across) * tall}px)`, gridTemplateColumns: `repeat(${across}, 1fr)` };
  return (
    <div class="frame" ref={frame}>
      <div style={{ height: `${rows * tall + GAP}px` }}>
        <div class="cells" role="group" aria-label="Pictures" style={style}>
          {cells}
        </div>
      </div>
    </div>
  );
}
