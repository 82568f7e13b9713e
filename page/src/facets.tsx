// What one may narrow the pictures to, and the way to take them along.

import type { Facet } from "./answers";
import type { Asked } from "./address";
import { useEffect, useState } from "preact/hooks";
import { count, facet as facetName, lang, value as valueName } from "./naming";

const FEW = 8;

interface Props {
  facets: Facet[];
  asked: Asked;
  change: (asked: Asked) => void;
  command: string;
  most: number; // the command's limit where there is no end in sight; 0 where it takes what is found
}

export function Facets({ facets, asked, change, command, most }: Props) {
  const [where, setWhere] = useState(asked.where); // what is being written is not yet asked
  useEffect(() => setWhere(asked.where), [asked.where]);
  const toggle = (name: string, value: string) => {
    const now = asked.chosen[name] ?? [];
    const next = now.includes(value) ? now.filter((other) => other !== value) : [...now, value];
    change({ ...asked, chosen: { ...asked.chosen, [name]: next } });
  };
  return (
    <div class="facets">
      {facets.map((facet) => (
        <Choice key={facet.name} facet={facet} chosen={asked.chosen[facet.name] ?? []} toggle={toggle} />
      ))}
      <form
        class="where"
        onSubmit={(event) => {
          event.preventDefault();
          change({ ...asked, where: where.trim() });
        }}
      >
        <label for="where">Condition</label>
        <input
          id="where"
          value={where}
          onInput={(event) => setWhere(event.currentTarget.value)}
          placeholder="width >= 256"
          maxLength={2000}
          spellcheck={false}
          autocomplete="off"
        />
      </form>
      <details>
        <summary>Make a data set of these</summary>
        {command ? (
          <>
            <p>
              {most
                ? `A search ranks every picture. This command makes a data set of at most ${count(most)} that match: they have all of the words, or are the same picture. Add --at-least 0.5 for what is similar, too:`
                : "This command makes a data set of what matches:"}
            </p>
            <code class="command">{command}</code>
          </>
        ) : (
          <p>First search, or choose a filter.</p>
        )}
      </details>
    </div>
  );
}

function Choice({ facet, chosen, toggle }: { facet: Facet; chosen: string[]; toggle: (name: string, value: string) => void }) {
  const [all, setAll] = useState(false);
  const there = new Set(facet.values.map((entry) => entry.value));
  const gone = chosen.filter((value) => !there.has(value)).map((value) => ({ value, count: 0 }));
  const values = [...gone, ...facet.values];
  const shown = all ? values : values.filter((entry, place) => place < FEW || chosen.includes(entry.value));
  return (
    <fieldset>
      <legend>{facetName(facet.name)}</legend>
      {shown.map((entry) => (
        <label key={entry.value}>
          <input
            type="checkbox"
            checked={chosen.includes(entry.value)}
            onChange={() => toggle(facet.name, entry.value)}
            data-facet={facet.name}
            value={entry.value}
          />
          <span class={entry.value ? "named" : "named none"} dir="auto" lang={facet.name === "language" ? lang(navigator.language) : undefined}>
            {valueName(facet.name, entry.value)}
          </span>
          <span class="count">{count(entry.count)}</span>
        </label>
      ))}
      {values.length > shown.length && (
        <button type="button" class="quiet" onClick={() => setAll(true)}>
          {count(values.length - shown.length)} more
        </button>
      )}
    </fieldset>
  );
}
